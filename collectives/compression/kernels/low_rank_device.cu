// PowerSGD's products of matrices and factors on a GPU. The orders of sums are those of low_rank.h.
#include <cuda_runtime.h>

#include <cstdint>

#include "collectives/compression/kernels/device_number.h"
#include "collectives/compression/kernels/low_rank_launch.h"

namespace thinwire {
namespace {

constexpr int threads = 256;
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

// ---- Products of a row of a left and a column of a right factor ----

// A row of a left factor, or up to four of its elements, which are read in one go.
template <typename T>
struct alignas(most_together * sizeof(T) > 16 ? 16 : most_together * sizeof(T)) RowOfLeft {
  T at[most_together];
};

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

// Of any rank.
template <typename T>
__device__ T product(const T* left, const T* right, std::int64_t rank, std::int64_t columns) {
  T sum = __ldg(left) * __ldg(right);
  for (std::int64_t k = 1; k < rank; ++k) sum += __ldg(left + k) * __ldg(right + k * columns);
  return sum;
}

// to := columns 0 to `count` of `rows` rows of a left factor, by all threads of a group.
template <typename T>
__device__ void read_left(RowOfLeft<T>* to, const T* left, std::int64_t rank, int count,
                          std::int64_t rows) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < rows * count; i += threads) {
    to[i / count].at[i % count] = left[i / count * rank + i % count];
  }
  __syncthreads();
}

// ---- P = M Q ----

constexpr int columns_in_lanes = 16;
constexpr int rows_of_lanes = static_cast<int>(low_rank_band) * columns_in_lanes / threads;

// Kinds of LowRankOwed; the rank of its factors is a constant up to most_together.
constexpr int nothing_owed = -2;
constexpr int residual_owed = -1;
constexpr int any_product_owed = 0;

// The rows that 16 threads have of a band, each beginning with its first column. Offsets in them
// are ints: registers decide how many loads are underway.
template <typename T>
struct RowsOfBand {
  T* matrix;
  LowRankOwed<T> owed;
  const RowOfLeft<T>* owed_left;  // in shared memory, where the rank is a constant
  int columns;
  int rank;
  int there;  // how many are
};

template <typename T>
__device__ LowRankOwed<T> owed_from_row(LowRankOwed<T> owed, const LowRankShape& shape,
                                        std::int64_t row) {
  if (owed.residual != nullptr) owed.residual += row * shape.columns;
  if (owed.left != nullptr) owed.left += row * shape.rank;
  return owed;
}

// owed[s][i] := owed[s][i] - left right^T.
template <int Owed, int steps, typename T>
__device__ void subtract_owed_product(const RowsOfBand<T>& rows, int j,
                                      T (&owed)[steps][rows_of_lanes]) {
#pragma unroll
  for (int s = 0; s < steps; ++s) {
    const T* right = rows.owed.right + j + s * columns_in_lanes;
    if constexpr (Owed > 0) {
      const OneColumn<Owed, T> column(right, rows.columns);
#pragma unroll
      for (int i = 0; i < rows_of_lanes; ++i) owed[s][i] -= column.times(rows.owed_left[i].at);
    } else {
#pragma unroll
      for (int i = 0; i < rows_of_lanes; ++i) {
        if (i >= rows.there) continue;
        owed[s][i] -= product(rows.owed.left + i * rows.rank, right, rows.rank, rows.columns);
      }
    }
  }
}

// Columns a stride of 16 apart, from j on: `steps` at once, so that many loads are underway.
template <int steps, int Rank, int Owed, typename T>
__device__ void add_products(const RowsOfBand<T>& rows, const T* right, int j,
                             T (&sums)[rows_of_lanes][Rank]) {
  T m[steps][rows_of_lanes];
  T e[steps][rows_of_lanes];
#pragma unroll
  for (int s = 0; s < steps; ++s) {
#pragma unroll
    for (int i = 0; i < rows_of_lanes; ++i) {
      const int at = i * rows.columns + j + s * columns_in_lanes;
      const bool there = i < rows.there;
      m[s][i] = there ? rows.matrix[at] : T{0};
      if (Owed != nothing_owed) e[s][i] = there ? __ldg(rows.owed.residual + at) : T{0};
    }
  }
  if constexpr (Owed >= any_product_owed) subtract_owed_product<Owed>(rows, j, e);
#pragma unroll
  for (int s = 0; s < steps; ++s) {
    const OneColumn<Rank, T> q(right + j + s * columns_in_lanes, rows.columns);
#pragma unroll
    for (int i = 0; i < rows_of_lanes; ++i) {
      if (Owed != nothing_owed) {
        m[s][i] += e[s][i];
        if (i < rows.there) rows.matrix[i * rows.columns + j + s * columns_in_lanes] = m[s][i];
      }
#pragma unroll
      for (int k = 0; k < Rank; ++k) sums[i][k] += m[s][i] * q.values[k];
    }
  }
}

// Each kind a function of its own, so that none keeps the registers of another.
template <int Rank, int Owed, typename T>
__device__ __noinline__ void left_of_rows(Number<Rank>, Number<Owed>, RowsOfBand<T> rows,
                                          const T* right, T* left) {
  constexpr int steps = sizeof(T) == 4 ? 4 : 2;
  T sums[rows_of_lanes][Rank] = {};
  int j = static_cast<int>(threadIdx.x) % columns_in_lanes;
#pragma unroll 1
  for (; j + (steps - 1) * columns_in_lanes < rows.columns; j += steps * columns_in_lanes) {
    add_products<steps, Rank, Owed>(rows, right, j, sums);
  }
#pragma unroll 1
  for (; j < rows.columns; j += columns_in_lanes) {
    add_products<1, Rank, Owed>(rows, right, j, sums);
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
      if (threadIdx.x % columns_in_lanes == 0 && i < rows.there) left[i * rows.rank + k] = sum;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(threads, 2) project_left_kernel(ProjectLeftArgs<T> args) {
  __shared__ RowOfLeft<T> owed_left[low_rank_band];
  const LowRankTile band = args.tables.bands[blockIdx.x];
  const LowRankMatrix matrix = args.tables.matrices[band.matrix];
  const LowRankShape& shape = matrix.shape;
  const LowRankOwed<T> owed = owed_of(args.owed, matrix);
  if (owed.left != nullptr && shape.rank <= most_together) {
    const std::int64_t rest = shape.rows - band.row;
    read_left(owed_left, owed.left + band.row * shape.rank, shape.rank,
              static_cast<int>(shape.rank), rest < low_rank_band ? rest : low_rank_band);
  }
  const std::int64_t place = threadIdx.x / columns_in_lanes * rows_of_lanes;
  const std::int64_t row = band.row + place;
  if (row >= shape.rows) return;  // all 16 threads
  const std::int64_t there = shape.rows - row;
  const RowsOfBand<T> rows{args.bucket + matrix.matrix + row * shape.columns,
                           owed_from_row(owed, shape, row),
                           owed_left + place,
                           static_cast<int>(shape.columns),
                           static_cast<int>(shape.rank),
                           there < rows_of_lanes ? static_cast<int>(there) : rows_of_lanes};
  by_four(shape.rank, [&](std::int64_t first, auto number) {
    const auto run = [&](auto kind) {
      left_of_rows(number, kind, rows, args.right + matrix.right + first * shape.columns,
                   args.left + matrix.left + row * shape.rank + first);
    };
    if (first > 0 || owed.residual == nullptr) return run(Number<nothing_owed>{});
    if (owed.left == nullptr) return run(Number<residual_owed>{});
    if (shape.rank > most_together) return run(Number<any_product_owed>{});
    run(number);
  });
}

// ---- Q^T = P^T M ----

template <int Rank, typename T>
__device__ void right_of_part(Number<Rank>, RowOfLeft<T>* part, const LowRankShape& shape,
                              const T* from, const T* left, std::int64_t rows, bool there, T* to) {
  read_left(part, left, shape.rank, Rank, rows);
  if (!there) return;
  T sums[Rank] = {};
  std::int64_t i = 0;
#pragma unroll 4
  for (; i + 4 <= rows; i += 4) {
    T m[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) m[r] = __ldg(from + (i + r) * shape.columns);
    const auto p0 = part[i];
    const auto p1 = part[i + 1];
    const auto p2 = part[i + 2];
    const auto p3 = part[i + 3];
#pragma unroll
    for (int k = 0; k < Rank; ++k) {
      sums[k] += (p0.at[k] * m[0] + p1.at[k] * m[1]) + (p2.at[k] * m[2] + p3.at[k] * m[3]);
    }
  }
  for (; i < rows; ++i) {
    const T m = __ldg(from + i * shape.columns);
#pragma unroll
    for (int k = 0; k < Rank; ++k) sums[k] += part[i].at[k] * m;
  }
#pragma unroll
  for (int k = 0; k < Rank; ++k) to[k * shape.columns] = sums[k];
}

template <typename T>
__global__ void __launch_bounds__(threads) project_right_kernel(ProjectRightArgs<T> args) {
  __shared__ RowOfLeft<T> part[low_rank_part];
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

// The product takes the matrix's place, or is taken from it.
enum class Product { store, subtract };

template <Product kind, typename T>
__device__ T with_product(T matrix, T product) {
  return kind == Product::store ? product : matrix - product;
}

template <int Rank, Product kind, typename T>
__device__ void product_of_part(RowOfLeft<T>* part, const LowRankProductArgs<T>& args,
                                const LowRankMatrix& matrix, const LowRankTile& tile,
                                std::int64_t rows) {
  const LowRankShape& shape = matrix.shape;
  read_left(part, args.left + matrix.left + tile.row * shape.rank, shape.rank, Rank, rows);
  const std::int64_t column = tile.column + threadIdx.x;
  if (column >= shape.columns) return;
  const OneColumn<Rank, T> right(args.right + matrix.right + column, shape.columns);
  T* bucket = args.bucket + matrix.matrix + tile.row * shape.columns + column;
  constexpr int together = 8;
  std::int64_t i = 0;
  for (; i + together <= rows; i += together) {
    T m[together] = {};
    if (kind == Product::subtract) {
#pragma unroll
      for (int r = 0; r < together; ++r) m[r] = bucket[(i + r) * shape.columns];
    }
#pragma unroll
    for (int r = 0; r < together; ++r) {
      const auto p = part[i + r];
      bucket[(i + r) * shape.columns] = with_product<kind>(m[r], right.times(p.at));
    }
  }
  for (; i < rows; ++i) {
    T& to = bucket[i * shape.columns];
    to = with_product<kind>(to, right.times(part[i].at));
  }
}

template <Product kind, typename T>
__global__ void __launch_bounds__(threads) product_kernel(LowRankProductArgs<T> args) {
  __shared__ RowOfLeft<T> part[low_rank_part];
  const LowRankTile tile = args.tables.tiles[blockIdx.x];
  const LowRankMatrix matrix = args.tables.matrices[tile.matrix];
  const LowRankShape& shape = matrix.shape;
  const std::int64_t rest = shape.rows - tile.row;
  const std::int64_t rows = rest < low_rank_part ? rest : low_rank_part;
  switch (shape.rank) {
    case 1:
      return product_of_part<1, kind>(part, args, matrix, tile, rows);
    case 2:
      return product_of_part<2, kind>(part, args, matrix, tile, rows);
    case 3:
      return product_of_part<3, kind>(part, args, matrix, tile, rows);
    case 4:
      return product_of_part<4, kind>(part, args, matrix, tile, rows);
    default:
      break;
  }
  const std::int64_t column = tile.column + threadIdx.x;
  if (column >= shape.columns) return;
  for (std::int64_t i = tile.row; i < tile.row + rows; ++i) {
    T& to = args.bucket[matrix.matrix + i * shape.columns + column];
    to = with_product<kind>(
        to, product(args.left + matrix.left + i * shape.rank, args.right + matrix.right + column,
                    shape.rank, shape.columns));
  }
}

template <Product kind, typename T>
int run_product(const LowRankProductArgs<T>& args, StreamHandle stream) {
  if (args.tables.tile_count == 0) return cudaSuccess;
  product_kernel<kind, T>
      <<<static_cast<unsigned>(args.tables.tile_count), threads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

namespace launch {

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
int multiply(const LowRankProductArgs<T>& args, StreamHandle stream) {
  return run_product<Product::store>(args, stream);
}
template <typename T>
int subtract(const LowRankProductArgs<T>& args, StreamHandle stream) {
  return run_product<Product::subtract>(args, stream);
}

template int project_left(const ProjectLeftArgs<DeviceNumber>&, StreamHandle);
template int project_right(const ProjectRightArgs<DeviceNumber>&, StreamHandle);
template int multiply(const LowRankProductArgs<DeviceNumber>&, StreamHandle);
template int subtract(const LowRankProductArgs<DeviceNumber>&, StreamHandle);

}  // namespace launch
}  // namespace thinwire
