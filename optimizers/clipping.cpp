#include "optimizers/clipping.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>

#include "collectives/queue_table.h"

namespace thinwire {
namespace {

// Puts the bucket's squared norm into `result`, which is in the memory of the queue.
template <typename T>
void launch_norm(const Bucket& bucket, const QueueTable<NormBlock>& blocks, at::Tensor block_sums,
                 double* result, const OptimizerLaunch& launch) {
  launch.kernels<T>().squared_norm({.blocks = blocks.data(),
                                    .block_count = blocks.size(),
                                    .values = bucket.gradient.const_data_ptr<T>(),
                                    .block_sums = block_sums.data_ptr<double>(),
                                    .result = result},
                                   launch.queue->stream());
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

double squared_norm(std::span<const Bucket> buckets, const OptimizerLaunch& launch) {
  if (buckets.empty()) return 0;
  const auto options = buckets.front().gradient.options().dtype(at::kDouble);
  const at::Tensor results = at::empty({static_cast<std::int64_t>(buckets.size())}, options);
  std::vector<QueueTable<NormBlock>> tables(buckets.size());
  std::vector<at::Tensor> sums;
  for (std::size_t i = 0; i < buckets.size(); ++i) {
    const Bucket& bucket = buckets[i];
    tables[i].fill(norm_blocks(bucket), bucket.gradient, *launch.queue);
    sums.push_back(at::empty({tables[i].size()}, options));
    double* result = results.data_ptr<double>() + i;
    if (bucket.gradient.scalar_type() == at::kDouble) {
      launch_norm<double>(bucket, tables[i], sums[i], result, launch);
    } else {
      launch_norm<float>(bucket, tables[i], sums[i], result, launch);
    }
  }
  const auto on_host = launch.queue->host_memory(results.nbytes());
  launch.queue->copy(on_host.get(), results.const_data_ptr(), results.nbytes());
  launch.queue->synchronize(Deadline::max());
  double sum = 0;
  for (std::size_t i = 0; i < buckets.size(); ++i) sum += static_cast<double*>(on_host.get())[i];
  return sum;
}

double clip_scale(double norm, double max_norm) {
  const double scale = max_norm / (norm + 1e-6);
  // Not std::min, which would turn the scale of a NaN norm into 1.
  return scale > 1 ? 1 : scale;
}

}  // namespace thinwire
