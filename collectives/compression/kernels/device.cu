// The kernels of codings and feedbacks on a GPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "collectives/compression/kernels/bodies-inl.h"
#include "collectives/compression/kernels/device_number.h"
#include "collectives/compression/kernels/launch.h"

namespace thinwire {
namespace {

constexpr int warps = on_device::warps_per_group;
constexpr int threads = warps * on_device::row_lanes;
// Groups that a multiprocessor runs at once: more hide more of memory's latency, but have fewer
// registers. Measured.
constexpr int groups_together = 4;
constexpr int groups_that_encode = 3;
constexpr std::int64_t most_groups = 1 << 20;

// Every warp takes one block of the table, then the one that lies as many warps further on.
template <typename Args, typename Body>
__device__ void for_each_block(const Args& args, Body body) {
  const std::int64_t stride = std::int64_t{gridDim.x} * warps;
  std::int64_t b = std::int64_t{blockIdx.x} * warps + threadIdx.x / on_device::row_lanes;
  for (; b < args.block_count; b += stride) {
    const Block block = args.blocks[b];
    if (block.count > 0) body(block, b);
  }
}

template <typename T>
__global__ void __launch_bounds__(threads, groups_together) average_kernel(AverageArgs<T> args) {
  for_each_block(args, [&](const Block& block, std::int64_t) { on_device::average(args, block); });
}
template <typename T>
__global__ void __launch_bounds__(threads, groups_that_encode) encode_kernel(EncodeArgs<T> args) {
  for_each_block(args, [&](const Block& block, std::int64_t b) {
    on_device::Scratch none;
    on_device::encode(args, block, b, none);
  });
}
template <typename T>
__global__ void __launch_bounds__(threads, groups_together)
    owner_reduce_kernel(OwnerReduceArgs<T> args) {
  for_each_block(args, [&](const Block& block, std::int64_t b) {
    on_device::Scratch none;
    on_device::owner_reduce(args, block, b, none);
  });
}
template <typename T>
__global__ void __launch_bounds__(threads, groups_together)
    form_error_kernel(FormErrorArgs<T> args) {
  for_each_block(
      args, [&](const Block& block, std::int64_t b) { on_device::form_error(args, block, b); });
}
template <typename T>
__global__ void __launch_bounds__(threads, groups_together)
    first_non_finite_kernel(FirstNonFiniteArgs<T> args) {
  for_each_block(
      args, [&](const Block& block, std::int64_t) { on_device::first_non_finite(args, block); });
}
template <typename T>
__global__ void __launch_bounds__(threads, groups_together) decode_kernel(DecodeArgs<T> args) {
  for_each_block(args, [&](const Block& block, std::int64_t) { on_device::decode(args, block); });
}
template <typename T>
__global__ void __launch_bounds__(threads, groups_together) integrate_kernel(DecodeArgs<T> args) {
  for_each_block(args,
                 [&](const Block& block, std::int64_t) { on_device::integrate(args, block); });
}
template <typename T>
__global__ void __launch_bounds__(threads, groups_together)
    mean_and_check_kernel(MeanAndCheckArgs<T> args) {
  for_each_block(args,
                 [&](const Block& block, std::int64_t) { on_device::mean_and_check(args, block); });
}

template <typename Args>
int run(void (*kernel)(Args), const Args& args, StreamHandle stream) {
  if (args.block_count <= 0) return cudaSuccess;
  const std::int64_t groups = std::min(most_groups, (args.block_count + warps - 1) / warps);
  kernel<<<static_cast<unsigned>(groups), threads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

namespace launch {

template <typename T>
int average(const AverageArgs<T>& args, StreamHandle stream) {
  return run(average_kernel<T>, args, stream);
}
template <typename T>
int encode(const EncodeArgs<T>& args, StreamHandle stream) {
  return run(encode_kernel<T>, args, stream);
}
template <typename T>
int owner_reduce(const OwnerReduceArgs<T>& args, StreamHandle stream) {
  return run(owner_reduce_kernel<T>, args, stream);
}
template <typename T>
int form_error(const FormErrorArgs<T>& args, StreamHandle stream) {
  return run(form_error_kernel<T>, args, stream);
}
template <typename T>
int first_non_finite(const FirstNonFiniteArgs<T>& args, StreamHandle stream) {
  return run(first_non_finite_kernel<T>, args, stream);
}
template <typename T>
int decode(const DecodeArgs<T>& args, StreamHandle stream) {
  return run(decode_kernel<T>, args, stream);
}
template <typename T>
int integrate(const DecodeArgs<T>& args, StreamHandle stream) {
  return run(integrate_kernel<T>, args, stream);
}
template <typename T>
int mean_and_check(const MeanAndCheckArgs<T>& args, StreamHandle stream) {
  return run(mean_and_check_kernel<T>, args, stream);
}

template int average(const AverageArgs<DeviceNumber>&, StreamHandle);
template int encode(const EncodeArgs<DeviceNumber>&, StreamHandle);
template int owner_reduce(const OwnerReduceArgs<DeviceNumber>&, StreamHandle);
template int form_error(const FormErrorArgs<DeviceNumber>&, StreamHandle);
template int first_non_finite(const FirstNonFiniteArgs<DeviceNumber>&, StreamHandle);
template int decode(const DecodeArgs<DeviceNumber>&, StreamHandle);
template int integrate(const DecodeArgs<DeviceNumber>&, StreamHandle);
template int mean_and_check(const MeanAndCheckArgs<DeviceNumber>&, StreamHandle);

}  // namespace launch
}  // namespace thinwire
