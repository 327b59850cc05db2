#include "optimizers/clipping.h"

#include <array>
#include <cstddef>

#include "runtime/base/error.h"

namespace thinwire {
namespace {

constexpr std::int64_t lanes = 32;

// Element i goes to lane i % 32 and the lanes are folded in halves: an order that vector units of
// any width can follow without changing a bit.
template <typename T>
double squared_sum(const T* values, std::int64_t numel) {
  std::array<double, lanes> sums{};
  const std::int64_t whole = numel - numel % lanes;
  for (std::int64_t i = 0; i < whole; i += lanes) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      const double value = static_cast<double>(values[i + lane]);
      sums[static_cast<std::size_t>(lane)] += value * value;
    }
  }
  for (std::int64_t i = whole; i < numel; ++i) {
    const double value = static_cast<double>(values[i]);
    sums[static_cast<std::size_t>(i - whole)] += value * value;
  }
  for (std::size_t half = lanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

template <typename T>
double squared_norm_of(const Bucket& bucket) {
  const T* gradient = bucket.gradient.const_data_ptr<T>();
  double sum = 0;
  for (const Slice& slice : bucket.slices) {
    if (!slice.frozen) sum += squared_sum(gradient + slice.offset, slice.numel);
  }
  return sum;
}

}  // namespace

double squared_norm(std::span<const Bucket> buckets) {
  double sum = 0;
  for (const Bucket& bucket : buckets) {
    check(bucket.gradient.is_cpu(), "a gradient whose norm is taken is on the CPU");
    sum += bucket.gradient.scalar_type() == at::kDouble ? squared_norm_of<double>(bucket)
                                                        : squared_norm_of<float>(bucket);
  }
  return sum;
}

double clip_scale(double norm, double max_norm) {
  const double scale = max_norm / (norm + 1e-6);
  // Not std::min, which would turn the scale of a NaN norm into 1.
  return scale > 1 ? 1 : scale;
}

}  // namespace thinwire
