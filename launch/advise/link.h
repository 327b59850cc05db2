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

// Seconds of one kind of operation by the bytes that a rank sends: straight lines between what was
// measured, and the last line beyond; not less than the bytes take at the speed of large messages,
// which a small one is above while the link has a burst to spend.
class LinkCurve {
 public:
  // By rising bytes; not empty.
  explicit LinkCurve(std::vector<LinkPoint> points);

  double seconds(double bytes) const;
  // Of the smallest message.
  double latency() const { return points_.front().seconds; }
  // Bits per second and rank, of the largest message.
  double bandwidth() const;
  const std::vector<LinkPoint>& points() const { return points_; }

 private:
  double seconds_per_byte() const;  // of large messages; 0 if only few sizes were measured

  std::vector<LinkPoint> points_;
};

// Curves by the name of the operation: all_reduce, all_to_all, all_gather. They are those of a link
// that is never at rest.
class Link {
 public:
  // `burst` in seconds: how much sooner an operation ends after a long rest. Shapers, switches and
  // clouds let that much pass at once, and save it up again while the link rests.
  explicit Link(std::map<std::string, LinkCurve> curves, double burst = 0)
      : curves_(std::move(curves)), burst_(burst) {}

  // Of an operation that was not measured: the curve of all_to_all.
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

// Collective: times each kind of operation over sizes of up to `largest` bytes sent by a rank, or
// until one takes long; the median of `repeats` after two to warm up (TCP opens its window slowly),
// on the slowest rank. Then the largest ones again after a rest each, for the burst. The same on
// every rank.
Link measure_link(Communicator& communicator, std::int64_t largest, std::int64_t repeats);

double median(std::vector<double> values);

}  // namespace thinwire
