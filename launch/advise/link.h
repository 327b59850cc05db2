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
// measured, and the last line beyond.
class LinkCurve {
 public:
  // By rising bytes; not empty.
  explicit LinkCurve(std::vector<LinkPoint> points) : points_(std::move(points)) {}

  double seconds(double bytes) const;
  // Of the smallest message.
  double latency() const { return points_.front().seconds; }
  // Bits per second and rank, of the largest message.
  double bandwidth() const;
  const std::vector<LinkPoint>& points() const { return points_; }

 private:
  std::vector<LinkPoint> points_;
};

// Curves by the name of the operation: all_reduce, all_to_all, all_gather.
class Link {
 public:
  explicit Link(std::map<std::string, LinkCurve> curves) : curves_(std::move(curves)) {}

  // An operation that was not measured costs what an all_to_all of as many bytes does.
  double seconds(const std::string& operation, double bytes) const;
  const std::map<std::string, LinkCurve>& curves() const { return curves_; }

 private:
  std::map<std::string, LinkCurve> curves_;
};

// Collective: times each kind of operation over sizes of up to `largest` bytes sent by a rank, or
// until one takes long; the median of `repeats` after two to warm up (TCP opens its window slowly),
// on the slowest rank. The same on every rank.
Link measure_link(Communicator& communicator, std::int64_t largest, std::int64_t repeats);

double median(std::vector<double> values);

}  // namespace thinwire
