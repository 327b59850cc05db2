// The arithmetic of the norm, block by block. The host's loops and the GPU's kernels are made of
// the same functions, so that they give the same bits. (That of the optimizers is in their own
// files.)
#pragma once

#include "collectives/compression/kernels/warp.h"
#include "optimizers/kernels/kernels.h"

namespace thinwire::bodies {

template <typename Warp, typename T>
THINWIRE_ON_DEVICE double squared_sum(const T* values, std::int32_t count) {
  return lane_sum<Warp, double>(count, [&](std::int64_t i) {
    const double value = static_cast<double>(values[i]);
    return value * value;
  });
}

template <typename Warp>
THINWIRE_ON_DEVICE double sum_of_blocks(const double* sums, std::int64_t count) {
  return lane_sum<Warp, double>(count, [&](std::int64_t b) { return sums[b]; });
}

}  // namespace thinwire::bodies
