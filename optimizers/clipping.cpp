#include "optimizers/clipping.h"

#include <algorithm>
#include <cstdint>

#include "runtime/base/error.h"

namespace thinwire {
namespace {

template <typename T>
double squared_norm_of(const Bucket& bucket) {
  const std::vector<NormBlock> blocks = norm_blocks(bucket);
  std::vector<double> block_sums(blocks.size());
  double result = 0;
  host_optimizer_kernels<T>().squared_norm({.blocks = blocks.data(),
                                            .block_count = static_cast<std::int64_t>(blocks.size()),
                                            .values = bucket.gradient.const_data_ptr<T>(),
                                            .block_sums = block_sums.data(),
                                            .result = &result},
                                           nullptr);
  return result;
}

}  // namespace

std::vector<NormBlock> norm_blocks(const Bucket& bucket) {
  std::vector<NormBlock> blocks;
  for (const Slice& slice : bucket.slices) {
    if (slice.frozen) continue;
    for (std::int64_t begin = slice.offset; begin < slice.end(); begin += norm_block) {
      const std::int64_t count = std::min<std::int64_t>(norm_block, slice.end() - begin);
      blocks.push_back({begin, static_cast<std::int32_t>(count)});
    }
  }
  return blocks;
}

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
