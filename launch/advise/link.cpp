#include "launch/advise/link.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <thread>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

constexpr std::int64_t kSmallest = 1024;
constexpr std::int64_t kFactor = 4;
// Beyond this an operation is as fast as it gets, and a larger one costs only patience.
constexpr double kLong = 0.25;
constexpr std::chrono::milliseconds kNoRest{0};
constexpr std::chrono::milliseconds kRest{200};
constexpr std::size_t kLargeSizes = 3;

using Start = std::function<std::unique_ptr<Work>()>;

// The operation `name` for which a rank sends about `bytes`.
Start operation(Communicator& communicator, const std::string& name, std::int64_t bytes) {
  const std::int64_t size = communicator.size();
  const std::int64_t share = std::max<std::int64_t>(1, bytes / (size - 1));  // for each peer
  const Counts counts(static_cast<std::size_t>(size), share);
  if (name == "all_reduce") {
    // A part to its owner and a sum to everybody: twice what the others do.
    const at::Tensor values = at::zeros({std::max<std::int64_t>(1, share / 8) * size}, at::kFloat);
    return [&communicator, values] { return communicator.all_reduce(values, ReduceOp::sum); };
  }
  const at::Tensor output = at::zeros({share * size}, at::kByte);
  if (name == "all_gather") {
    const at::Tensor input = at::zeros({share}, at::kByte);
    return [&communicator, output, input, counts] {
      return communicator.all_gather(output, input, counts);
    };
  }
  const at::Tensor input = at::zeros({share * size}, at::kByte);
  return [&communicator, output, input, counts] {
    return communicator.all_to_all(output, input, counts, counts);
  };
}

LinkPoint measure(Communicator& communicator, const Start& start, std::int64_t repeats,
                  std::chrono::milliseconds rest) {
  std::vector<double> times;
  LinkPoint point;
  const auto once = [&] {
    std::this_thread::sleep_for(rest);
    communicator.barrier()->wait();
    const auto begin = Clock::now();
    const auto work = start();
    work->wait();
    point.bytes = static_cast<double>(work->bytes_sent());
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  for (int warm_up = 0; warm_up < 2; ++warm_up) once();
  for (std::int64_t i = 0; i < repeats; ++i) times.push_back(once());
  const auto nanoseconds = static_cast<std::int64_t>(1e9 * median(times));
  const auto slowest =
      all_reduce_max(communicator, {nanoseconds, static_cast<std::int64_t>(point.bytes)});
  return {static_cast<double>(slowest[1]), 1e-9 * static_cast<double>(slowest[0])};
}

// Large messages all lose the same time to a shaper: that of the burst. The median, as one may have
// been held up.
double measure_burst(Communicator& communicator, const LinkCurve& curve, std::int64_t repeats) {
  const std::vector<LinkPoint>& points = curve.points();
  std::vector<double> saved;
  for (std::size_t i = points.size() - std::min(kLargeSizes, points.size()); i < points.size();
       ++i) {
    const LinkPoint rested =
        measure(communicator,
                operation(communicator, "all_to_all", static_cast<std::int64_t>(points[i].bytes)),
                repeats, kRest);
    saved.push_back(points[i].seconds - rested.seconds);
  }
  return std::max(median(saved), 0.0);
}

// Straight lines between points of rising bytes, level before them, and the last line beyond.
double on_lines(const std::vector<LinkPoint>& points, double bytes) {
  if (bytes <= points.front().bytes || points.size() == 1) return points.front().seconds;
  const auto above = std::find_if(points.begin() + 1, points.end() - 1,
                                  [&](const LinkPoint& point) { return point.bytes >= bytes; });
  const LinkPoint& low = *(above - 1);
  const double slope = (above->seconds - low.seconds) / (above->bytes - low.bytes);
  return std::max(low.seconds + slope * (bytes - low.bytes), 0.0);
}

}  // namespace

double median(std::vector<double> values) {
  check(!values.empty(), "a median is of something");
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

LinkCurve::LinkCurve(std::vector<LinkPoint> points) : points_(std::move(points)) {
  check(!points_.empty(), "a link was measured with some size");
}

double LinkCurve::seconds(double bytes) const {
  return std::max(on_lines(points_, bytes), bytes * seconds_per_byte());
}

// The least slope between two large points: one of them may have been held up.
double LinkCurve::seconds_per_byte() const {
  if (points_.size() < kLargeSizes) return 0;
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t i = points_.size() - kLargeSizes; i < points_.size(); ++i) {
    for (std::size_t j = i + 1; j < points_.size(); ++j) {
      const double slope =
          (points_[j].seconds - points_[i].seconds) / (points_[j].bytes - points_[i].bytes);
      if (slope > 0) least = std::min(least, slope);
    }
  }
  return std::isinf(least) ? 0 : least;
}

double LinkCurve::bandwidth() const {
  return 8 * points_.back().bytes / points_.back().seconds;
}

const LinkCurve& Link::curve(const std::string& operation) const {
  const auto found = curves_.find(operation);
  return (found != curves_.end() ? found : curves_.find("all_to_all"))->second;
}

Link measure_link(Communicator& communicator, std::int64_t largest, std::int64_t repeats) {
  std::map<std::string, LinkCurve> curves;
  for (const std::string name : {"all_reduce", "all_to_all", "all_gather"}) {
    std::vector<LinkPoint> points;
    for (std::int64_t bytes = kSmallest; bytes < kFactor * largest; bytes *= kFactor) {
      const std::int64_t asked = std::min(bytes, std::max(largest, kSmallest));
      const LinkPoint point =
          measure(communicator, operation(communicator, name, asked), repeats, kNoRest);
      // The last two may be the same size.
      if (!points.empty() && point.bytes <= points.back().bytes) break;
      points.push_back(point);
      if (point.seconds > kLong) break;
    }
    curves.emplace(name, LinkCurve(points));
  }
  return Link(curves, measure_burst(communicator, curves.at("all_to_all"), repeats));
}

}  // namespace thinwire
