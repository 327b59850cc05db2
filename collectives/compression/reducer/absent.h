// What a commit does about the slices of which no rank had a gradient (Slice::absent). It is rare,
// and known only when everything was computed as if they had one: so their part is put back.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "collectives/bucket.h"
#include "collectives/compression/kernels/kernels.h"
#include "collectives/queue.h"

namespace thinwire {

bool has_absent(const Bucket& bucket);

// Whether a block belongs to an absent slice.
inline auto is_of_absent(const Bucket& bucket) {
  return [&bucket](const Block& block) {
    return bucket.slices[static_cast<std::size_t>(block.slice)].absent;
  };
}

// next := now in the absent slices. Both have the bucket's elements `part`; where they are
// undefined nothing is done.
void hold_absent(const Bucket& bucket, Range part, const at::Tensor& next, const at::Tensor& now,
                 Queue& queue);

// gradient := 0 in the absent slices.
void clear_absent(const Bucket& bucket, Queue& queue);

// Calls `body(first, count)` for every run of blocks of a table that are `wanted(block)`.
template <typename Wanted, typename Body>
void for_each_run(std::span<const Block> table, Wanted wanted, Body body) {
  const auto size = static_cast<std::int64_t>(table.size());
  const auto is_wanted = [&](std::int64_t b) { return wanted(table[static_cast<std::size_t>(b)]); };
  for (std::int64_t begin = 0; begin < size;) {
    std::int64_t end = begin;
    while (end < size && is_wanted(end)) ++end;
    if (end > begin) body(begin, end - begin);
    begin = std::max(end, begin + 1);
  }
}

}  // namespace thinwire
