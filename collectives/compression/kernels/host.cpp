#include "collectives/compression/kernels/bodies.h"
#include "collectives/compression/kernels/kernels.h"

namespace thinwire {
namespace {

// A kernel's body for every block of the table, one after another: a block stays in the cache.
template <auto Body, typename Args>
void run(const Args& args, StreamHandle) {
  for (std::int64_t b = 0; b < args.block_count; ++b) {
    if (args.blocks[b].count > 0) Body(args, args.blocks[b]);
  }
}

}  // namespace

template <typename T>
Kernels<T> host_kernels() {
  return {run<bodies::encode<HostWarp, T>, EncodeArgs<T>>,
          run<bodies::owner_reduce<HostWarp, T>, OwnerReduceArgs<T>>,
          run<bodies::first_non_finite<HostWarp, T>, FirstNonFiniteArgs<T>>,
          run<bodies::decode<HostWarp, T>, DecodeArgs<T>>,
          run<bodies::integrate<HostWarp, T>, DecodeArgs<T>>,
          run<bodies::mean_and_check<HostWarp, T>, MeanAndCheckArgs<T>>};
}

template Kernels<float> host_kernels<float>();
template Kernels<double> host_kernels<double>();

}  // namespace thinwire
