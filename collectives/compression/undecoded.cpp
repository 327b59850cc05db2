#include "collectives/compression/undecoded.h"

#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <new>

namespace thinwire {

template <typename T>
void for_each_tile(const Bucket& bucket, const std::function<void(const DecodedTile<T>&)>& body) {
  const UndecodedEstimate& coded = *bucket.undecoded;
  const std::vector<Block>& blocks = coded.blocks;
  std::int64_t largest = 0;
  for (const Block& block : blocks) largest = std::max<std::int64_t>(largest, block.count);
  const auto memory = hwy::AllocateAligned<T>(static_cast<std::size_t>(tile_step + largest));
  if (memory == nullptr) throw std::bad_alloc();
  T* const values = memory.get();
  const Kernels<T> kernels = host_kernels<T>();

  std::vector<Block> batch;
  std::int64_t filled = 0;  // elements in memory
  std::int64_t begin = 0;   // of the first of them
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    if (bucket.rests(static_cast<std::size_t>(blocks[b].slice))) continue;
    if (filled == 0) begin = blocks[b].begin;
    Block& block = batch.emplace_back(blocks[b]);
    block.begin = filled;
    filled += block.count;
    const bool ends = b + 1 == blocks.size() || blocks[b + 1].slice != block.slice;
    // No more than one step at a time: the processor begins with the next while it waits for the
    // memory of this one. Four at a time take half as long again.
    if (filled < tile_step && !ends) continue;
    kernels.decode({.blocks = batch.data(),
                    .block_count = static_cast<std::int64_t>(batch.size()),
                    .payload = static_cast<const char*>(coded.message.const_data_ptr()),
                    .into = values},
                   nullptr);
    batch.clear();
    const std::int64_t count = ends ? filled : filled / tile_step * tile_step;
    body({.slice = blocks[b].slice, .begin = begin, .count = count, .values = values});
    std::copy(values + count, values + filled, values);
    begin += count;
    filled -= count;
  }
}

template void for_each_tile<float>(const Bucket&,
                                   const std::function<void(const DecodedTile<float>&)>&);
template void for_each_tile<double>(const Bucket&,
                                    const std::function<void(const DecodedTile<double>&)>&);

}  // namespace thinwire
