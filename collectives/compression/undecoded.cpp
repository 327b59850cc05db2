#include "collectives/compression/undecoded.h"

#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <iterator>
#include <new>

#include "collectives/base/team.h"

namespace thinwire {

namespace {

// Tiles that a thread takes at least.
constexpr std::int64_t least_tiles = 32;

// Whether a slice's last block is this one.
bool ends_slice(const std::vector<Block>& blocks, std::size_t b) {
  return b + 1 == blocks.size() || blocks[b + 1].slice != blocks[b].slice;
}

// The blocks with whose first element a tile begins, and behind them the number of blocks.
std::vector<std::size_t> starts_of_tiles(const std::vector<Block>& blocks) {
  std::vector<std::size_t> starts;
  std::int64_t filled = 0;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    if (filled == 0) starts.push_back(b);
    filled = ends_slice(blocks, b) ? 0 : (filled + blocks[b].count) % tile_step;
  }
  starts.push_back(blocks.size());
  return starts;
}

// Blocks [begin, end) of a bucket's estimate, with the first of which a tile begins.
template <typename T>
void each_tile_of(const Bucket& bucket, std::size_t from, std::size_t to, T* values,
                  const Kernels<T>& kernels,
                  const std::function<void(const DecodedTile<T>&)>& body) {
  const UndecodedEstimate& coded = *bucket.undecoded;
  const std::vector<Block>& blocks = coded.blocks;
  std::vector<Block> batch;
  std::int64_t filled = 0;  // elements in memory
  std::int64_t begin = 0;   // of the first of them
  for (std::size_t b = from; b < to; ++b) {
    if (bucket.rests(static_cast<std::size_t>(blocks[b].slice))) continue;
    if (filled == 0) begin = blocks[b].begin;
    Block& block = batch.emplace_back(blocks[b]);
    block.begin = filled;
    filled += block.count;
    const bool ends = ends_slice(blocks, b);
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

}  // namespace

template <typename T>
void for_each_tile(const Bucket& bucket, const Executor& on,
                   const std::function<void(const DecodedTile<T>&)>& body) {
  const std::vector<Block>& blocks = bucket.undecoded->blocks;
  std::int64_t largest = 0;
  for (const Block& block : blocks) largest = std::max<std::int64_t>(largest, block.count);
  const Kernels<T> kernels = host_kernels<T>();
  // One thread takes all tiles in one go: it needs to know where none but the first begins.
  const bool alone = on.team == nullptr || on.team->size() == 1;
  const std::vector<std::size_t> starts =
      alone ? std::vector<std::size_t>{0, blocks.size()} : starts_of_tiles(blocks);
  share_out(
      on.team, std::ssize(starts) - 1, least_tiles, [&](std::int64_t begin, std::int64_t end) {
        const auto memory = hwy::AllocateAligned<T>(static_cast<std::size_t>(tile_step + largest));
        if (memory == nullptr) throw std::bad_alloc();
        each_tile_of<T>(bucket, starts[static_cast<std::size_t>(begin)],
                        starts[static_cast<std::size_t>(end)], memory.get(), kernels, body);
      });
}

template void for_each_tile<float>(const Bucket&, const Executor&,
                                   const std::function<void(const DecodedTile<float>&)>&);
template void for_each_tile<double>(const Bucket&, const Executor&,
                                    const std::function<void(const DecodedTile<double>&)>&);

}  // namespace thinwire
