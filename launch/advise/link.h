// What the exchanges between the ranks cost.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "collectives/communicator.h"

namespace thinwire {

// One measured size: bytes that a rank sends for an operation, and seconds until it is done.
struct LinkPoint {
  double bytes = 0;
  double seconds = 0;
};

// Seconds of one kind of operation by the bytes that a rank sends: straight lines between the
// measured points, the last one continued. No result is less than the bytes take at the speed of
// large messages, because a small message may be faster than that while the link lets a burst pass.
class LinkCurve {
 public:
  // By rising bytes; not empty.
  explicit LinkCurve(std::vector<LinkPoint> points);

  double seconds(double bytes) const;
  // Seconds of the smallest message.
  double latency() const { return points_.front().seconds; }
  // Bits per second and rank, of the largest message.
  double bandwidth() const;
  const std::vector<LinkPoint>& points() const { return points_; }

 private:
  double seconds_per_byte() const;  // of large messages; 0 if only few sizes were measured

  std::vector<LinkPoint> points_;
};

// Curves by the name of the operation: all_reduce, all_to_all, all_gather. They hold for a link
// that is never at rest.
class Link {
 public:
  // `burst`: how many seconds sooner an operation ends when the link has rested for long before it.
  // Shapers, switches and clouds let that much pass at once, and save it up again while it rests.
  explicit Link(std::map<std::string, LinkCurve> curves, double burst = 0)
      : curves_(std::move(curves)), burst_(burst) {}

  // For an operation that was not measured, the curve of all_to_all.
  const LinkCurve& curve(const std::string& operation) const;
  double seconds(const std::string& operation, double bytes) const {
    return curve(operation).seconds(bytes);
  }
  double burst() const { return burst_; }
  const std::map<std::string, LinkCurve>& curves() const { return curves_; }

 private:
  std::map<std::string, LinkCurve> curves_;
  double burst_;
};

// Collective. Times each kind of operation over growing sizes, until a rank sends `largest` bytes
// or until one operation takes long. Each time is the median of `repeats` runs, after two to warm
// up (TCP opens its window slowly), on the slowest rank. Then it times the largest sizes again,
// each after a rest, for the burst. Every rank gets the same result.
Link measure_link(Communicator& communicator, std::int64_t largest, std::int64_t repeats);

double median(std::vector<double> values);

}  // namespace thinwire
