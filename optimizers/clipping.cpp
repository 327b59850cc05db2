#include "optimizers/clipping.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>

#include "collectives/compression/undecoded.h"
#include "collectives/queue_table.h"
#include "optimizers/kernels/bodies.h"

namespace thinwire {
namespace {

void append_norm_blocks(std::int64_t begin, std::int64_t end, std::vector<NormBlock>& blocks) {
  for (; begin < end; begin += norm_block) {
    const std::int64_t count = std::min<std::int64_t>(norm_block, end - begin);
    blocks.push_back({begin, static_cast<std::int32_t>(count)});
  }
}

// Puts the bucket's squared norm into `result`, which is in the memory of the queue.
template <typename T>
void put_norm_on_queue(const Bucket& bucket, const QueueTable<NormBlock>& blocks,
                       at::Tensor block_sums, double* result, const OptimizerDevice& device) {
  device.kernels<T>().squared_norm({.blocks = blocks.data(),
                                    .block_count = blocks.size(),
                                    .values = bucket.gradient.const_data_ptr<T>(),
                                    .block_sums = block_sums.data_ptr<double>(),
                                    .result = result},
                                   device.queue->executor());
}

// The same of a coded gradient. Norm blocks are cut from a slice's start, and so are tiles.
template <typename T>
void norm_of_tiles(const Bucket& bucket, double* result, const OptimizerDevice& device) {
  static_assert(tile_step % norm_block == 0);
  std::vector<NormBlock> blocks;
  std::vector<double> sums;
  double of_tile = 0;
  for_each_tile<T>(bucket, {}, [&](const DecodedTile<T>& tile) {
    blocks.clear();
    append_norm_blocks(0, tile.count, blocks);
    const std::size_t before = sums.size();
    sums.resize(before + blocks.size());
    device.kernels<T>().squared_norm({.blocks = blocks.data(),
                                      .block_count = static_cast<std::int64_t>(blocks.size()),
                                      .values = tile.values,
                                      .block_sums = sums.data() + before,
                                      .result = &of_tile},
                                     nullptr);
  });
  *result = bodies::sum_of_blocks<HostWarp>(sums.data(), static_cast<std::int64_t>(sums.size()));
}

}  // namespace

std::vector<NormBlock> norm_blocks(const Bucket& bucket) {
  std::vector<NormBlock> blocks;
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (!bucket.rests(i)) append_norm_blocks(slice.offset, slice.end(), blocks);
  }
  return blocks;
}

double squared_norm(std::span<const Bucket> buckets, const OptimizerDevice& device) {
  if (buckets.empty()) return 0;
  const auto options = buckets.front().gradient.options().dtype(at::kDouble);
  const at::Tensor results = at::empty({static_cast<std::int64_t>(buckets.size())}, options);
  std::vector<QueueTable<NormBlock>> tables(buckets.size());
  std::vector<at::Tensor> sums(buckets.size());
  for (std::size_t i = 0; i < buckets.size(); ++i) {
    const Bucket& bucket = buckets[i];
    double* result = results.data_ptr<double>() + i;
    const bool is_double = bucket.gradient.scalar_type() == at::kDouble;
    if (bucket.undecoded) {
      is_double ? norm_of_tiles<double>(bucket, result, device)
                : norm_of_tiles<float>(bucket, result, device);
      continue;
    }
    tables[i].fill(norm_blocks(bucket), bucket.gradient, *device.queue);
    sums[i] = at::empty({tables[i].size()}, options);
    is_double ? put_norm_on_queue<double>(bucket, tables[i], sums[i], result, device)
              : put_norm_on_queue<float>(bucket, tables[i], sums[i], result, device);
  }
  const auto on_host = device.queue->host_memory(results.nbytes());
  device.queue->copy(on_host.get(), results.const_data_ptr(), results.nbytes());
  device.queue->synchronize(Deadline::max());
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
