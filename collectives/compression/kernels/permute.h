// Kernels that bring the elements of parts of a bucket into another order and back.
#pragma once

#include <cstdint>

#include "collectives/stream.h"

namespace thinwire {

// Consecutive elements whose order changes among themselves.
struct PermutedPart {
  std::int64_t begin = 0;  // elements from the bucket's start
  std::int64_t count = 0;  // below 2^31
  std::int64_t first = 0;  // of its entries in `order` and in `scratch`
};

// All pointers are to memory that the instance can read (kernels.h has the rules).
template <typename T>
struct PermuteArgs {
  const PermutedPart* parts = nullptr;
  std::int64_t part_count = 0;
  const std::int32_t* order = nullptr;  // of each part: a permutation of 0 ... count - 1
  T* values = nullptr;                  // the bucket's
  T* scratch = nullptr;                 // as many as `order` has entries
};

// One instance of both kernels; T is float or double. For element k of each part
//   apply:   value k := what was value order[k]
//   revert:  value order[k] := what was value k
template <typename T>
struct PermuteKernels {
  void (*apply)(const PermuteArgs<T>& args, const Executor& on);
  void (*revert)(const PermuteArgs<T>& args, const Executor& on);
};

// Runs at once, in the calling thread.
template <typename T>
PermuteKernels<T> host_permute_kernels();

// Queues on the stream; throws `Error` when a launch fails. Only in builds with CUDA, in the
// library thinwire::cuda_kernels.
template <typename T>
PermuteKernels<T> cuda_permute_kernels();

extern template PermuteKernels<float> host_permute_kernels<float>();
extern template PermuteKernels<double> host_permute_kernels<double>();
extern template PermuteKernels<float> cuda_permute_kernels<float>();
extern template PermuteKernels<double> cuda_permute_kernels<double>();

}  // namespace thinwire
