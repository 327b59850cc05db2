// The permutations of permute.h on a GPU: one launch fills the scratch, the next one the values, so
// that no thread overwrites what another one has still to read.
#include <cuda_runtime.h>

#include <cstdint>

#include "collectives/compression/kernels/device_number.h"
#include "collectives/compression/kernels/permute_launch.h"

namespace thinwire {
namespace {

constexpr int threads = 256;
constexpr unsigned groups_per_part = 256;

// Calls `body(part, k)` for every element of every part.
template <typename T, typename Body>
__device__ void for_each_element(const PermuteArgs<T>& args, Body body) {
  for (std::int64_t p = blockIdx.x; p < args.part_count; p += gridDim.x) {
    const PermutedPart part = args.parts[p];
    const std::int64_t stride = std::int64_t{gridDim.y} * threads;
    for (std::int64_t k = std::int64_t{blockIdx.y} * threads + threadIdx.x; k < part.count;
         k += stride) {
      body(part, k);
    }
  }
}

template <typename T>
__global__ void gather_kernel(PermuteArgs<T> args) {
  for_each_element(args, [&](const PermutedPart& part, std::int64_t k) {
    args.scratch[part.first + k] = args.values[part.begin + args.order[part.first + k]];
  });
}
template <typename T>
__global__ void save_kernel(PermuteArgs<T> args) {
  for_each_element(args, [&](const PermutedPart& part, std::int64_t k) {
    args.scratch[part.first + k] = args.values[part.begin + k];
  });
}
template <typename T>
__global__ void put_kernel(PermuteArgs<T> args) {
  for_each_element(args, [&](const PermutedPart& part, std::int64_t k) {
    args.values[part.begin + k] = args.scratch[part.first + k];
  });
}
template <typename T>
__global__ void scatter_kernel(PermuteArgs<T> args) {
  for_each_element(args, [&](const PermutedPart& part, std::int64_t k) {
    args.values[part.begin + args.order[part.first + k]] = args.scratch[part.first + k];
  });
}

template <typename T>
int run(void (*first)(PermuteArgs<T>), void (*second)(PermuteArgs<T>), const PermuteArgs<T>& args,
        StreamHandle stream) {
  if (args.part_count <= 0) return cudaSuccess;
  const auto parts = static_cast<unsigned>(args.part_count < 65535 ? args.part_count : 65535);
  const dim3 groups(parts, groups_per_part);
  first<<<groups, threads, 0, stream>>>(args);
  second<<<groups, threads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

namespace launch {

template <typename T>
int apply_order(const PermuteArgs<T>& args, StreamHandle stream) {
  return run(gather_kernel<T>, put_kernel<T>, args, stream);
}
template <typename T>
int revert_order(const PermuteArgs<T>& args, StreamHandle stream) {
  return run(save_kernel<T>, scatter_kernel<T>, args, stream);
}

template int apply_order(const PermuteArgs<DeviceNumber>&, StreamHandle);
template int revert_order(const PermuteArgs<DeviceNumber>&, StreamHandle);

}  // namespace launch
}  // namespace thinwire
