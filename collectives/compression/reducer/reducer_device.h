// Where a reducer's arithmetic runs.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "collectives/compression/kernels/kernels.h"
#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/kernels/permute.h"
#include "collectives/queue.h"

namespace thinwire {

// The kernels and the queue that they are put on, in whose memory the buckets are; by default the
// host's.
struct ReducerDevice {
  Kernels<float> for_float = host_kernels<float>();
  Kernels<double> for_double = host_kernels<double>();
  LowRankKernels<float> low_rank_for_float = host_low_rank_kernels<float>();
  LowRankKernels<double> low_rank_for_double = host_low_rank_kernels<double>();
  std::shared_ptr<Queue> queue = make_host_queue();
  // Values that travel together: while some are on the wire, the next are encoded and those before
  // reduced. Small, so that the first are soon on the wire and the last soon off it; large against
  // what a message and a launch cost.
  std::int64_t segment = 1 << 19;
  PermuteKernels<float> permute_for_float = host_permute_kernels<float>();
  PermuteKernels<double> permute_for_double = host_permute_kernels<double>();

  template <typename T>
  const Kernels<T>& kernels() const {
    if constexpr (std::is_same_v<T, double>) {
      return for_double;
    } else {
      return for_float;
    }
  }
  template <typename T>
  const PermuteKernels<T>& permute() const {
    if constexpr (std::is_same_v<T, double>) {
      return permute_for_double;
    } else {
      return permute_for_float;
    }
  }
  template <typename T>
  const LowRankKernels<T>& low_rank() const {
    if constexpr (std::is_same_v<T, double>) {
      return low_rank_for_double;
    } else {
      return low_rank_for_float;
    }
  }
};

}  // namespace thinwire
