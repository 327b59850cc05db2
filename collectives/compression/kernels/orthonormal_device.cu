// Gram and Schmidt's process for PowerSGD's factors on a GPU, a group of threads for each matrix.
// The orders of sums are those of orthonormal.h.
#include <cuda_runtime.h>

#include <cstdint>

#include "collectives/compression/kernels/device_number.h"
#include "collectives/compression/kernels/low_rank_launch.h"
#include "collectives/compression/kernels/orthonormal.h"

namespace thinwire {
namespace {

constexpr int warp_threads = 32;
constexpr std::uint32_t all_lanes = 0xffffffff;

// Earlier vectors whose shares of a vector are formed together and stay in registers.
constexpr int most_together = 4;

constexpr int vector_threads = static_cast<int>(orthonormal_lanes);
constexpr int vector_warps = vector_threads / warp_threads;

// Sums over the threads of a group, which all get.
struct Sums {
  double warps[2][most_together + 1][vector_warps];  // in turns: one meeting per sum is enough

  template <int n>
  __device__ void over_group(double (&values)[n], int& turn) {
    turn ^= 1;
    fold<warp_threads>(values);
    if (threadIdx.x % warp_threads == 0) {
#pragma unroll
      for (int v = 0; v < n; ++v) warps[turn][v][threadIdx.x / warp_threads] = values[v];
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < n; ++v) values[v] = warps[turn][v][threadIdx.x % vector_warps];
    fold<vector_warps>(values);
  }

 private:
  template <int lanes, int n>
  __device__ static void fold(double (&values)[n]) {
#pragma unroll
    for (int width = 1; width < lanes; width *= 2) {
#pragma unroll
      for (int v = 0; v < n; ++v) values[v] += __shfl_xor_sync(all_lanes, values[v], width);
    }
  }
};

// One matrix's vectors. Element i of each is always with thread i % vector_threads, so that only
// sums need the others.
struct Vectors {
  Sums& sums;
  double* shares;  // in shared memory, for more than most_together earlier vectors
  double* vectors;
  std::int64_t length;
  int turn = 0;

  // What follows a vector's part in each of `earlier` (at first: what it is before anything was
  // subtracted), taken from it, and the shares that it has then; returns its squared length.
  template <int earlier, bool subtract>
  __device__ double sweep(double* vector, double (&share)[most_together]) {
    double sum[earlier + 1] = {};
#pragma unroll 2
    for (std::int64_t i = threadIdx.x; i < length; i += vector_threads) {
      double value = vector[i];
      double direction[earlier + 1];
#pragma unroll
      for (int e = 0; e < earlier; ++e) direction[e] = vectors[e * length + i];
      if (subtract) {
#pragma unroll
        for (int e = 0; e < earlier; ++e) value -= share[e] * direction[e];
        vector[i] = value;
      }
#pragma unroll
      for (int e = 0; e < earlier; ++e) sum[e] += direction[e] * value;
      sum[earlier] += value * value;
    }
    sums.over_group(sum, turn);
#pragma unroll
    for (int e = 0; e < earlier; ++e) share[e] = sum[e];
    return sum[earlier];
  }

  template <int earlier>
  __device__ void free_of(double* vector, double& before, double& after) {
    double share[most_together];
    before = sqrt(sweep<earlier, false>(vector, share));
    after = before;
    if (earlier == 0) return;
    sweep<earlier, true>(vector, share);
    after = sqrt(sweep<earlier, true>(vector, share));
  }

  __device__ void free_of_many(std::int64_t k, double* vector, double& before, double& after) {
    double none[most_together];
    before = sqrt(sweep<0, false>(vector, none));
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t earlier = 0; earlier < k; ++earlier) {
        double share[1] = {};
        for (std::int64_t i = threadIdx.x; i < length; i += vector_threads) {
          share[0] += vectors[earlier * length + i] * vector[i];
        }
        sums.over_group(share, turn);
        if (threadIdx.x == 0) shares[earlier] = share[0];
      }
      __syncthreads();
      for (std::int64_t i = threadIdx.x; i < length; i += vector_threads) {
        double value = vector[i];
        for (std::int64_t earlier = 0; earlier < k; ++earlier) {
          value -= shares[earlier] * vectors[earlier * length + i];
        }
        vector[i] = value;
      }
      __syncthreads();
    }
    after = sqrt(sweep<0, false>(vector, none));
  }

  // orthonormal.cpp's free_of_earlier.
  __device__ bool free_of_earlier(std::int64_t k, double tolerance, double shortest) {
    double* vector = vectors + k * length;
    double before = 0;
    double after = 0;
    switch (k) {
      case 0:
        free_of<0>(vector, before, after);
        break;
      case 1:
        free_of<1>(vector, before, after);
        break;
      case 2:
        free_of<2>(vector, before, after);
        break;
      case 3:
        free_of<3>(vector, before, after);
        break;
      case 4:
        free_of<4>(vector, before, after);
        break;
      default:
        free_of_many(k, vector, before, after);
        break;
    }
    const bool kept = before >= shortest && after > tolerance * before;
    for (std::int64_t i = threadIdx.x; i < length; i += vector_threads) {
      vector[i] = kept ? vector[i] / after : 0.0;
    }
    return kept;
  }
};

template <bool Right, typename T>
__global__ void __launch_bounds__(vector_threads)
    orthonormal_kernel(OrthonormalArgs<T> args, double shortest) {
  __shared__ Sums sums;
  extern __shared__ double shares[];
  const LowRankMatrix matrix = args.tables.matrices[blockIdx.x];
  const std::int64_t rank = matrix.shape.rank;
  const std::int64_t length = Right ? matrix.shape.columns : matrix.shape.rows;
  const std::int64_t place = Right ? matrix.right : matrix.left;
  const std::int64_t to_vector = Right ? length : 1;
  const std::int64_t to_element = Right ? 1 : rank;
  Vectors vectors{sums, shares, args.work + place, length};
  T* factor = args.factors + place;
  // All at once, as those of P are interleaved.
  for (std::int64_t i = threadIdx.x; i < length; i += vector_threads) {
    for (std::int64_t k = 0; k < rank; ++k) {
      T value = 0;
      if (!Right) {
        value = factor[k * to_vector + i * to_element];
      } else if (args.kept != nullptr) {
        value = args.kept[matrix.factor + k * length + i];
      }
      vectors.vectors[k * length + i] = value;
    }
  }
  for (std::int64_t k = 0; k < rank; ++k) {
    [[maybe_unused]] const bool kept = vectors.free_of_earlier(k, args.tolerance, shortest);
    if constexpr (Right) {
      if (kept) continue;
      for (std::int64_t i = threadIdx.x; i < length; i += vector_threads) {
        vectors.vectors[k * length + i] =
            low_rank_draw(args.draw_key, matrix.fresh, args.step, length, k, i);
      }
      vectors.free_of_earlier(k, args.tolerance, shortest);
    }
  }
  for (std::int64_t i = threadIdx.x; i < length; i += vector_threads) {
    for (std::int64_t k = 0; k < rank; ++k) {
      factor[k * to_vector + i * to_element] = static_cast<T>(vectors.vectors[k * length + i]);
    }
  }
}

template <bool Right, typename T>
int run_orthonormal(const OrthonormalArgs<T>& args, StreamHandle stream) {
  const LowRankTables& tables = args.tables;
  if (tables.matrix_count == 0) return cudaSuccess;
  const auto bytes = static_cast<std::size_t>(tables.largest_rank) * sizeof(double);
  orthonormal_kernel<Right, T>
      <<<static_cast<unsigned>(tables.matrix_count), vector_threads, bytes, stream>>>(
          args, shortest_vector<T>);
  return cudaGetLastError();
}

}  // namespace

namespace launch {

template <typename T>
int orthonormal_left(const OrthonormalArgs<T>& args, StreamHandle stream) {
  return run_orthonormal<false>(args, stream);
}
template <typename T>
int orthonormal_right(const OrthonormalArgs<T>& args, StreamHandle stream) {
  return run_orthonormal<true>(args, stream);
}
template int orthonormal_left(const OrthonormalArgs<DeviceNumber>&, StreamHandle);
template int orthonormal_right(const OrthonormalArgs<DeviceNumber>&, StreamHandle);

}  // namespace launch
}  // namespace thinwire
