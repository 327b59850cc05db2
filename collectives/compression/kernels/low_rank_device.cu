// PowerSGD's kernels on a GPU. The orders of sums are those of low_rank.h and orthonormal.h.
#include <cuda_runtime.h>

#include <cstdint>

#include "collectives/compression/kernels/low_rank_launch.h"
#include "collectives/compression/kernels/orthonormal.h"

namespace thinwire {
namespace {

constexpr int threads = 256;
constexpr int warp_threads = 32;
constexpr std::uint32_t all_lanes = 0xffffffff;
static_assert(threads == low_rank_columns);

// Columns of a factor that are taken together; their sums stay in registers.
constexpr int most_together = 4;

template <int n>
struct Number {};

// Calls `body(first, Number<n>)` for groups of up to four of `rank` columns of a factor.
template <typename Body>
__device__ void by_four(std::int64_t rank, Body body) {
  std::int64_t k = 0;
  for (; k + 4 < rank; k += 4) body(k, Number<4>{});
  switch (rank - k) {
    case 1:
      return body(k, Number<1>{});
    case 2:
      return body(k, Number<2>{});
    case 3:
      return body(k, Number<3>{});
    default:
      return body(k, Number<4>{});
  }
}

// ---- P = M Q ----

constexpr int columns_in_lanes = 16;
constexpr int rows_of_lanes = static_cast<int>(low_rank_band) * columns_in_lanes / threads;

// The rows that 16 threads have of a band, and columns a stride of 16 apart: `steps` at once, so
// that many loads are underway.
template <int steps, int Rank, bool Residual, typename T>
__device__ void add_products(const LowRankShape& shape, T* matrix, const T* residual,
                             const T* right, std::int64_t row, std::int64_t j,
                             T (&sums)[rows_of_lanes][Rank]) {
  T m[steps][rows_of_lanes];
  T e[steps][rows_of_lanes];
#pragma unroll
  for (int s = 0; s < steps; ++s) {
#pragma unroll
    for (int i = 0; i < rows_of_lanes; ++i) {
      const std::int64_t at = (row + i) * shape.columns + j + s * columns_in_lanes;
      const bool there = row + i < shape.rows;
      m[s][i] = there ? matrix[at] : T{0};
      if (Residual) e[s][i] = there ? __ldg(residual + at) : T{0};
    }
  }
#pragma unroll
  for (int s = 0; s < steps; ++s) {
    T q[Rank];
#pragma unroll
    for (int k = 0; k < Rank; ++k) {
      q[k] = __ldg(right + k * shape.columns + j + s * columns_in_lanes);
    }
#pragma unroll
    for (int i = 0; i < rows_of_lanes; ++i) {
      if (Residual) {
        m[s][i] += e[s][i];
        const std::int64_t at = (row + i) * shape.columns + j + s * columns_in_lanes;
        if (row + i < shape.rows) matrix[at] = m[s][i];
      }
#pragma unroll
      for (int k = 0; k < Rank; ++k) sums[i][k] += m[s][i] * q[k];
    }
  }
}

template <int Rank, bool Residual, typename T>
__device__ void left_of_rows(const LowRankShape& shape, T* matrix, const T* residual,
                             const T* right, std::int64_t row, T* left) {
  constexpr int steps = sizeof(T) == 4 ? 4 : 2;
  T sums[rows_of_lanes][Rank] = {};
  std::int64_t j = threadIdx.x % columns_in_lanes;
  for (; j + (steps - 1) * columns_in_lanes < shape.columns; j += steps * columns_in_lanes) {
    add_products<steps, Rank, Residual>(shape, matrix, residual, right, row, j, sums);
  }
  for (; j < shape.columns; j += columns_in_lanes) {
    add_products<1, Rank, Residual>(shape, matrix, residual, right, row, j, sums);
  }
#pragma unroll
  for (int i = 0; i < rows_of_lanes; ++i) {
#pragma unroll
    for (int k = 0; k < Rank; ++k) {
      T sum = sums[i][k];
#pragma unroll
      for (int width = columns_in_lanes / 2; width > 0; width /= 2) {
        sum += __shfl_xor_sync(all_lanes, sum, width);
      }
      if (threadIdx.x % columns_in_lanes == 0 && row + i < shape.rows) {
        left[(row + i) * shape.rank + k] = sum;
      }
    }
  }
}

template <int Rank, int Residual, typename T>
__device__ void left_of_rows_of(Number<Rank>, Number<Residual>, const LowRankShape& shape,
                                T* matrix, const T* residual, const T* right, std::int64_t row,
                                T* left) {
  left_of_rows<Rank, Residual == 1>(shape, matrix, residual, right, row, left);
}

template <typename T>
__global__ void __launch_bounds__(threads) project_left_kernel(ProjectLeftArgs<T> args) {
  const LowRankTile band = args.tables.bands[blockIdx.x];
  const LowRankMatrix matrix = args.tables.matrices[band.matrix];
  const std::int64_t row = band.row + threadIdx.x / columns_in_lanes * rows_of_lanes;
  by_four(matrix.shape.rank, [&](std::int64_t first, auto number) {
    const auto run = [&](auto residual, auto with) {
      left_of_rows_of(number, with, matrix.shape, args.bucket + matrix.matrix, residual,
                      args.right + matrix.right + first * matrix.shape.columns, row,
                      args.left + matrix.left + first);
    };
    if (first == 0 && args.residual != nullptr) {
      run(args.residual + matrix.matrix, Number<1>{});
    } else {
      run(args.residual, Number<0>{});
    }
  });
}

// ---- Q^T = P^T M ----

// A row's elements are read in one go.
template <typename T>
struct PartOfLeft {
  struct alignas(most_together * sizeof(T) > 16 ? 16 : most_together * sizeof(T)) Row {
    T at[most_together];
  };
  Row row[low_rank_part];
};

// Of the rows from `row` on: columns first to first + Rank of P.
template <int Rank, typename T>
__device__ void read_left(PartOfLeft<T>& part, const T* left, std::int64_t rank,
                          std::int64_t rows) {
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < rows * Rank; i += threads) {
    part.row[i / Rank].at[i % Rank] = left[i / Rank * rank + i % Rank];
  }
  __syncthreads();
}

template <int Rank, typename T>
__device__ void right_of_part(Number<Rank>, PartOfLeft<T>& part, const LowRankShape& shape,
                              const T* from, const T* left, std::int64_t rows, bool there, T* to) {
  read_left<Rank>(part, left, shape.rank, rows);
  if (!there) return;
  T sums[Rank] = {};
  std::int64_t i = 0;
#pragma unroll 4
  for (; i + 4 <= rows; i += 4) {
    T m[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) m[r] = __ldg(from + (i + r) * shape.columns);
    const auto p0 = part.row[i];
    const auto p1 = part.row[i + 1];
    const auto p2 = part.row[i + 2];
    const auto p3 = part.row[i + 3];
#pragma unroll
    for (int k = 0; k < Rank; ++k) {
      sums[k] += (p0.at[k] * m[0] + p1.at[k] * m[1]) + (p2.at[k] * m[2] + p3.at[k] * m[3]);
    }
  }
  for (; i < rows; ++i) {
    const T m = __ldg(from + i * shape.columns);
#pragma unroll
    for (int k = 0; k < Rank; ++k) sums[k] += part.row[i].at[k] * m;
  }
#pragma unroll
  for (int k = 0; k < Rank; ++k) to[k * shape.columns] = sums[k];
}

template <typename T>
__global__ void __launch_bounds__(threads) project_right_kernel(ProjectRightArgs<T> args) {
  __shared__ PartOfLeft<T> part;
  const LowRankTile tile = args.tables.tiles[blockIdx.x];
  const LowRankMatrix matrix = args.tables.matrices[tile.matrix];
  const LowRankShape& shape = matrix.shape;
  const std::int64_t rest = shape.rows - tile.row;
  const std::int64_t rows = rest < low_rank_part ? rest : low_rank_part;
  const std::int64_t column = tile.column + threadIdx.x;
  T* to = shape.rows <= low_rank_part ? args.right + matrix.right
                                      : args.partial + matrix.partial +
                                            tile.row / low_rank_part * shape.rank * shape.columns;
  by_four(shape.rank, [&](std::int64_t first, auto number) {
    right_of_part(number, part, shape,
                  args.bucket + matrix.matrix + tile.row * shape.columns + column,
                  args.left + matrix.left + tile.row * shape.rank + first, rows,
                  column < shape.columns, to + first * shape.columns + column);
  });
}

template <typename T>
__global__ void __launch_bounds__(threads) sum_parts_kernel(ProjectRightArgs<T> args) {
  const LowRankTile tile = args.tables.tiles[blockIdx.x];
  const LowRankMatrix matrix = args.tables.matrices[tile.matrix];
  const LowRankShape& shape = matrix.shape;
  const std::int64_t column = tile.column + threadIdx.x;
  if (shape.rows <= low_rank_part || column >= shape.columns) return;
  const std::int64_t parts = (shape.rows + low_rank_part - 1) / low_rank_part;
  const std::int64_t stride = shape.rank * shape.columns;
  for (std::int64_t k = 0; k < shape.rank; ++k) {
    const T* from = args.partial + matrix.partial + k * shape.columns + column;
    T sum = from[0];
#pragma unroll 8
    for (std::int64_t i = 1; i < parts; ++i) sum += from[i * stride];
    args.right[matrix.right + k * shape.columns + column] = sum;
  }
}

// ---- P Q^T ----

// Column `column` of factors of Rank columns, in registers.
template <int Rank, typename T>
struct OneColumn {
  T values[Rank];
  __device__ OneColumn(const T* right, std::int64_t columns) {
#pragma unroll
    for (int k = 0; k < Rank; ++k) values[k] = __ldg(right + k * columns);
  }
  __device__ T times(const T* left) const {
    T sum = left[0] * values[0];
#pragma unroll
    for (int k = 1; k < Rank; ++k) sum += left[k] * values[k];
    return sum;
  }
};

template <int Rank, bool Own, typename T>
__device__ void back_of_part(PartOfLeft<T>& part, const MultiplyBackArgs<T>& args,
                             const LowRankMatrix& matrix, const LowRankTile& tile,
                             std::int64_t rows) {
  const LowRankShape& shape = matrix.shape;
  read_left<Rank>(part, args.left + matrix.left + tile.row * shape.rank, shape.rank, rows);
  const std::int64_t column = tile.column + threadIdx.x;
  if (column >= shape.columns) return;
  const OneColumn<Rank, T> mean(args.right + matrix.right + column, shape.columns);
  const OneColumn<Rank, T> own((Own ? args.own : args.right) + matrix.right + column,
                               shape.columns);
  const std::int64_t begin = matrix.matrix + tile.row * shape.columns + column;
  T* bucket = args.bucket + begin;
  T* estimate = args.estimate + begin;
  constexpr int together = 8;
  std::int64_t i = 0;
  for (; i + together <= rows; i += together) {
    T m[together];
    if (Own) {
#pragma unroll
      for (int r = 0; r < together; ++r) m[r] = bucket[(i + r) * shape.columns];
    }
#pragma unroll
    for (int r = 0; r < together; ++r) {
      const std::int64_t at = (i + r) * shape.columns;
      const auto p = part.row[i + r];
      if (Own) bucket[at] = m[r] - own.times(p.at);
      estimate[at] = mean.times(p.at);
    }
  }
  for (; i < rows; ++i) {
    const std::int64_t at = i * shape.columns;
    if (Own) bucket[at] -= own.times(part.row[i].at);
    estimate[at] = mean.times(part.row[i].at);
  }
}

// Of any rank.
template <typename T>
__device__ T product(const T* left, const T* right, std::int64_t rank, std::int64_t columns) {
  T sum = __ldg(left) * __ldg(right);
  for (std::int64_t k = 1; k < rank; ++k) sum += __ldg(left + k) * __ldg(right + k * columns);
  return sum;
}

template <bool Own, typename T>
__global__ void __launch_bounds__(threads) multiply_back_kernel(MultiplyBackArgs<T> args) {
  __shared__ PartOfLeft<T> part;
  const LowRankTile tile = args.tables.tiles[blockIdx.x];
  const LowRankMatrix matrix = args.tables.matrices[tile.matrix];
  const LowRankShape& shape = matrix.shape;
  const std::int64_t rest = shape.rows - tile.row;
  const std::int64_t rows = rest < low_rank_part ? rest : low_rank_part;
  switch (shape.rank) {
    case 1:
      return back_of_part<1, Own>(part, args, matrix, tile, rows);
    case 2:
      return back_of_part<2, Own>(part, args, matrix, tile, rows);
    case 3:
      return back_of_part<3, Own>(part, args, matrix, tile, rows);
    case 4:
      return back_of_part<4, Own>(part, args, matrix, tile, rows);
    default:
      break;
  }
  const std::int64_t column = tile.column + threadIdx.x;
  if (column >= shape.columns) return;
  for (std::int64_t i = tile.row; i < tile.row + rows; ++i) {
    const std::int64_t at = matrix.matrix + i * shape.columns + column;
    const T* left = args.left + matrix.left + i * shape.rank;
    const std::int64_t right = matrix.right + column;
    if (Own) args.bucket[at] -= product(left, args.own + right, shape.rank, shape.columns);
    args.estimate[at] = product(left, args.right + right, shape.rank, shape.columns);
  }
}

// ---- Gram and Schmidt's process: a group of threads for each matrix ----

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
template <typename T>
int project_left(const ProjectLeftArgs<T>& args, StreamHandle stream) {
  if (args.tables.band_count == 0) return cudaSuccess;
  project_left_kernel<T>
      <<<static_cast<unsigned>(args.tables.band_count), threads, 0, stream>>>(args);
  return cudaGetLastError();
}
template <typename T>
int project_right(const ProjectRightArgs<T>& args, StreamHandle stream) {
  const auto groups = static_cast<unsigned>(args.tables.tile_count);
  if (groups == 0) return cudaSuccess;
  project_right_kernel<T><<<groups, threads, 0, stream>>>(args);
  sum_parts_kernel<T>
      <<<static_cast<unsigned>(args.tables.top_tile_count), threads, 0, stream>>>(args);
  return cudaGetLastError();
}
template <typename T>
int multiply_back(const MultiplyBackArgs<T>& args, StreamHandle stream) {
  const auto groups = static_cast<unsigned>(args.tables.tile_count);
  if (groups == 0) return cudaSuccess;
  if (args.own == nullptr) {
    multiply_back_kernel<false, T><<<groups, threads, 0, stream>>>(args);
  } else {
    multiply_back_kernel<true, T><<<groups, threads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

template int orthonormal_left(const OrthonormalArgs<float>&, StreamHandle);
template int orthonormal_left(const OrthonormalArgs<double>&, StreamHandle);
template int orthonormal_right(const OrthonormalArgs<float>&, StreamHandle);
template int orthonormal_right(const OrthonormalArgs<double>&, StreamHandle);
template int project_left(const ProjectLeftArgs<float>&, StreamHandle);
template int project_left(const ProjectLeftArgs<double>&, StreamHandle);
template int project_right(const ProjectRightArgs<float>&, StreamHandle);
template int project_right(const ProjectRightArgs<double>&, StreamHandle);
template int multiply_back(const MultiplyBackArgs<float>&, StreamHandle);
template int multiply_back(const MultiplyBackArgs<double>&, StreamHandle);

}  // namespace launch
}  // namespace thinwire
