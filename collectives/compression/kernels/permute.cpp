#include "collectives/compression/kernels/permute.h"

#include <algorithm>

namespace thinwire {
namespace {

template <typename T>
void apply(const PermuteArgs<T>& args, const Executor&) {
  for (std::int64_t p = 0; p < args.part_count; ++p) {
    const PermutedPart& part = args.parts[p];
    T* values = args.values + part.begin;
    T* scratch = args.scratch + part.first;
    const std::int32_t* order = args.order + part.first;
    for (std::int64_t k = 0; k < part.count; ++k) scratch[k] = values[order[k]];
    std::copy_n(scratch, part.count, values);
  }
}

template <typename T>
void revert(const PermuteArgs<T>& args, const Executor&) {
  for (std::int64_t p = 0; p < args.part_count; ++p) {
    const PermutedPart& part = args.parts[p];
    T* values = args.values + part.begin;
    T* scratch = args.scratch + part.first;
    const std::int32_t* order = args.order + part.first;
    std::copy_n(values, part.count, scratch);
    for (std::int64_t k = 0; k < part.count; ++k) values[order[k]] = scratch[k];
  }
}

}  // namespace

template <typename T>
PermuteKernels<T> host_permute_kernels() {
  return {apply<T>, revert<T>};
}

template PermuteKernels<float> host_permute_kernels<float>();
template PermuteKernels<double> host_permute_kernels<double>();

}  // namespace thinwire
