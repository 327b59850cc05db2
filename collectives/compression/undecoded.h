// A gradient that nobody has written to memory yet.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/kernels/kernels.h"

namespace thinwire {

// A bucket's estimate as it came over the wire, in host memory: one message, which is decoded where
// its values are needed.
struct UndecodedEstimate {
  std::vector<Block> blocks;  // by rising `begin`, without those of slices that rest
  at::Tensor message;         // packed; the reducer's, which overwrites it in the next stage
};

// Consecutive elements of one slice.
template <typename T>
struct DecodedTile {
  std::int32_t slice = 0;  // index into the bucket's slices
  std::int64_t begin = 0;  // elements from the bucket's start
  std::int64_t count = 0;
  const T* values = nullptr;
};

// A tile begins this many elements, or a multiple, behind its slice's start.
constexpr std::int64_t tile_step = 1024;

// Decodes what a bucket has coded, without the slices that rest, through memory for one tile or
// block, whichever is larger, and calls `body` with each tile: by rising `begin`, or where `on` has
// several threads, on any of them and in any order, but with the same tiles. The values are those
// of `Kernels::decode`, bit for bit.
template <typename T>
void for_each_tile(const Bucket& bucket, const Executor& on,
                   const std::function<void(const DecodedTile<T>&)>& body);

extern template void for_each_tile<float>(const Bucket&, const Executor&,
                                          const std::function<void(const DecodedTile<float>&)>&);
extern template void for_each_tile<double>(const Bucket&, const Executor&,
                                           const std::function<void(const DecodedTile<double>&)>&);

}  // namespace thinwire
