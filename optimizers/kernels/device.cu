#include <cuda_runtime.h>

#include <algorithm>

#include "collectives/compression/kernels/device_number.h"
#include "optimizers/kernels/bodies.h"
#include "optimizers/kernels/launch.h"

namespace thinwire {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / warp_lanes;
constexpr std::int64_t most_groups = 1 << 20;
constexpr std::int64_t tile = 4096;

unsigned groups_for(std::int64_t parts) {
  return static_cast<unsigned>(std::min(most_groups, parts));
}

// Calls `body(slice, i)` for the element i of every slice, i from the bucket's start. A group of
// threads takes one tile of the bucket after another, whatever the sizes of the slices.
// `begin_slice` makes what the elements of one slice share.
template <typename BeginSlice, typename Body>
__device__ void for_each_element(const StepSlice* slices, std::int64_t slice_count,
                                 std::int64_t numel, BeginSlice begin_slice, Body body) {
  for (std::int64_t first = blockIdx.x * tile; first < numel; first += gridDim.x * tile) {
    const std::int64_t last = first + tile < numel ? first + tile : numel;
    // The first slice that ends behind the tile's begin.
    std::int64_t low = 0;
    std::int64_t high = slice_count;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (slices[middle].offset + slices[middle].numel > first) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    for (; low < slice_count && slices[low].offset < last; ++low) {
      const StepSlice slice = slices[low];
      const auto numbers = begin_slice(slice);
      const std::int64_t begin = slice.offset > first ? slice.offset : first;
      const std::int64_t end =
          slice.offset + slice.numel < last ? slice.offset + slice.numel : last;
      for (std::int64_t i = begin + threadIdx.x; i < end; i += threads) body(numbers, i);
    }
  }
}

template <typename Rule, typename T, int... k>
__global__ void __launch_bounds__(threads)
    step_kernel(BucketView<T> bucket, typename Rule::Step step) {
  for_each_element(
      bucket.slices, bucket.slice_count, bucket.numel,
      [&](const StepSlice& slice) { return Rule::template numbers<T>(step, slice); },
      [&](const typename Rule::template Numbers<T>& numbers, std::int64_t i) {
        Rule::move(numbers, bucket.gradient[i], bucket.weights[i], bucket.state[k][i]...);
      });
}

template <typename T>
__global__ void __launch_bounds__(threads) block_sums_kernel(SquaredNormArgs<T> args) {
  const std::int64_t stride = std::int64_t{gridDim.x} * warps;
  std::int64_t b = std::int64_t{blockIdx.x} * warps + threadIdx.x / warp_lanes;
  for (; b < args.block_count; b += stride) {
    const NormBlock block = args.blocks[b];
    const double sum = bodies::squared_sum<DeviceWarp>(args.values + block.begin, block.count);
    DeviceWarp::once([&] { args.block_sums[b] = sum; });
  }
}

constexpr int result_threads = 1024;
constexpr int staged = 2 * result_threads;  // block sums

// bodies::sum_of_blocks, one group: its first warp adds, in that order, what all threads fetch
// meanwhile, as a warp alone would wait for memory.
template <typename T>
__global__ void __launch_bounds__(result_threads) result_kernel(SquaredNormArgs<T> args) {
  __shared__ double tiles[2][staged];
  const auto fetch = [&](std::int64_t begin, double(&to)[staged]) {
    for (int i = threadIdx.x; i < staged; i += result_threads) {
      to[i] = begin + i < args.block_count ? args.block_sums[begin + i] : 0.0;
    }
  };
  fetch(0, tiles[0]);
  DeviceWarp::Lanes<double> sums{};
  int turn = 0;
  for (std::int64_t begin = 0; begin < args.block_count; begin += staged) {
    __syncthreads();
    fetch(begin + staged, tiles[1 - turn]);
    if (threadIdx.x < warp_lanes) {
      const std::int64_t rest = args.block_count - begin;
      const int count = rest < staged ? static_cast<int>(rest) : staged;
#pragma unroll 8
      for (int i = threadIdx.x; i < count; i += warp_lanes) sums.value += tiles[turn][i];
    }
    turn = 1 - turn;
  }
  if (threadIdx.x >= warp_lanes) return;
  const double sum = DeviceWarp::fold(sums);
  DeviceWarp::once([&] { *args.result = sum; });
}

}  // namespace

namespace launch {

template <typename Rule, typename T, int... k>
void launch_step(const BucketView<T>& bucket, const typename Rule::Step& step, StreamHandle stream,
                 std::integer_sequence<int, k...>) {
  const std::int64_t tiles = (bucket.numel + tile - 1) / tile;
  step_kernel<Rule, T, k...><<<groups_for(tiles), threads, 0, stream>>>(bucket, step);
}

template <typename Rule, typename T>
int step(const BucketView<T>& bucket, const typename Rule::Step& step, StreamHandle stream) {
  if (bucket.slice_count <= 0 || bucket.numel <= 0) return cudaSuccess;
  with_states<Rule>(bucket.state_count,
                    [&](auto states) { launch_step<Rule>(bucket, step, stream, states); });
  return cudaGetLastError();
}

template <typename T>
int squared_norm(const SquaredNormArgs<T>& args, StreamHandle stream) {
  if (args.block_count > 0) {
    block_sums_kernel<<<groups_for((args.block_count + warps - 1) / warps), threads, 0, stream>>>(
        args);
  }
  result_kernel<<<1, result_threads, 0, stream>>>(args);
  return cudaGetLastError();
}

template int squared_norm(const SquaredNormArgs<DeviceNumber>&, StreamHandle);

// Makes the instances of `step` that cuda.cpp links. (nvcc makes the kernels of a template only
// where a function that is instantiated calls them: a constant of their addresses would not do.)
template <typename T, typename... Rules>
auto instances(RuleList<Rules...>) {
  return std::make_tuple(step<Rules, T>...);
}
template auto instances<DeviceNumber>(KernelRules);

}  // namespace launch
}  // namespace thinwire
