// Products of a matrix with factors of a few columns: what PowerSGD (reducer/power_sgd.h) does to
// memory, a pass over the matrix each; first of one matrix on the host, then of all of a bucket.
//
// All matrices are row by row: M is rows x columns, a left factor P is rows x rank, a right factor
// is kept transposed, Q^T of rank x columns. Nothing may overlap unless a comment says so.
// T is float or double.
//
// Equal bits on every machine, host or GPU: a product and its addition are rounded apart, and sums
// have a fixed order. Over columns they are formed in 16 lanes, column j in lane j % 16, and the
// lanes are folded, lane += lane + width for width 8, 4, 2, 1. Over rows they are formed in parts
// of 256 rows, whose sums are added in order; in a part, groups of four rows from the first one on,
// (x0 + x1) + (x2 + x3), are added one after another, and rows that are left over one by one. Over
// the rank they are formed in order.
#pragma once

#include <cstdint>
#include <vector>

#include "collectives/base/philox.h"
#include "collectives/stream.h"

namespace thinwire {

constexpr std::int64_t low_rank_part = 256;  // rows

struct LowRankShape {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t rank = 0;
};

// What a rank owes of a matrix: E = residual - left right^T, or the residual where the factors are
// null, or nothing where all are. With the matrix and the factors of the last step it is what that
// step left unsent, formed where it is read: a pass over memory that writes it is saved.
template <typename T>
struct LowRankOwed {
  const T* residual = nullptr;
  const T* left = nullptr;
  const T* right = nullptr;
};

// matrix := M = matrix + E, left := M Q.
template <typename T>
void project_left(const LowRankShape& shape, T* matrix, const LowRankOwed<T>& owed, const T* right,
                  T* left);

// right := Q^T = P^T M.
template <typename T>
void project_right(const LowRankShape& shape, const T* matrix, const T* left, T* right);

// matrix := P Q^T.
template <typename T>
void multiply_factors(const LowRankShape& shape, const T* left, const T* right, T* matrix);

// matrix := matrix - P Q^T.
template <typename T>
void subtract_product(const LowRankShape& shape, const T* left, const T* right, T* matrix);

// ---- All matrices of a bucket at once ----

// A matrix and its factors: where each lies, in elements from the start of its buffer.
struct LowRankMatrix {
  LowRankShape shape;
  std::int64_t matrix = 0;   // in the bucket
  std::int64_t left = 0;     // P, among the left factors
  std::int64_t right = 0;    // Q^T, among the right factors
  std::int64_t factor = 0;   // Q^T, among those that are kept from step to step
  std::int64_t partial = 0;  // the sums of its parts of rows, where it has more than one
  std::uint64_t fresh = 0;   // Philox's substream of its draws
};

// A piece of a matrix for one group of a GPU's threads.
struct LowRankTile {
  std::int32_t matrix = 0;
  std::int64_t row = 0;
  std::int64_t column = 0;
};

// Lists in memory that the kernels can read; on the host they need no tiles.
struct LowRankTables {
  const LowRankMatrix* matrices = nullptr;
  std::int64_t matrix_count = 0;
  std::int64_t largest_rank = 0;
  const LowRankTile* bands = nullptr;  // low_rank_band whole rows each
  std::int64_t band_count = 0;
  const LowRankTile* tiles = nullptr;  // low_rank_part rows of low_rank_columns columns each
  std::int64_t tile_count = 0;
  std::int64_t top_tile_count = 0;  // those of row 0, which are the first ones
};
constexpr std::int64_t low_rank_band = 64;
constexpr std::int64_t low_rank_columns = 256;

// The tiles of a bucket's matrices, and how many elements their parts' sums take.
struct LowRankTiles {
  std::vector<LowRankTile> bands;
  std::vector<LowRankTile> tiles;
  std::int64_t top_tile_count = 0;
  std::int64_t partial = 0;
  std::int64_t largest_rank = 0;
};
// Fills in `partial` of each matrix.
LowRankTiles make_tiles(std::vector<LowRankMatrix>& matrices);

// Element i of column k of a matrix's Q where it is drawn anew: a sum of eight uniform draws, which
// is close to normal and, other than one made by logarithms, the same bits on every machine. The
// scale does not matter.
constexpr double low_rank_draw(std::uint64_t key, std::uint64_t fresh, std::uint64_t step,
                               std::int64_t columns, std::int64_t k, std::int64_t i) {
  const PhiloxBlock words =
      philox(key, fresh, (step << 32) + static_cast<std::uint64_t>(k * columns + i));
  std::int64_t sum = 0;
  for (const std::uint32_t word : words) sum += (word & 0xffff) + (word >> 16);
  return static_cast<double>(2 * sum - 8 * 0xffff);
}

// Makes the factors of every matrix orthonormal in float64 (orthonormal.h), P's columns in place or
// Q's columns from what was kept. A dropped column of P becomes zero, one of Q is drawn anew.
template <typename T>
struct OrthonormalArgs {
  LowRankTables tables;
  const T* kept = nullptr;  // of Q: kept factors; null: zeros
  T* factors = nullptr;     // P: left factors, in and out; Q: right factors, out
  double* work = nullptr;   // as long as the factors are; the host needs none
  double tolerance = 0;     // of orthonormal.h
  // Of Q, for `low_rank_draw`.
  std::uint64_t draw_key = 0;
  std::uint64_t step = 0;
};

template <typename T>
struct ProjectLeftArgs {
  LowRankTables tables;
  T* bucket = nullptr;
  LowRankOwed<T> owed;  // the bucket's
  const T* right = nullptr;
  T* left = nullptr;
};

// One matrix's of a bucket's.
template <typename T>
constexpr LowRankOwed<T> owed_of(const LowRankOwed<T>& owed, const LowRankMatrix& matrix) {
  if (owed.residual == nullptr) return {};
  if (owed.left == nullptr) return {owed.residual + matrix.matrix};
  return {owed.residual + matrix.matrix, owed.left + matrix.left, owed.right + matrix.right};
}

template <typename T>
struct ProjectRightArgs {
  LowRankTables tables;
  const T* bucket = nullptr;
  const T* left = nullptr;
  T* partial = nullptr;  // the host needs none
  T* right = nullptr;
};

// multiply: bucket := P Q^T; subtract: bucket := bucket - P Q^T.
template <typename T>
struct LowRankProductArgs {
  LowRankTables tables;
  const T* left = nullptr;
  const T* right = nullptr;
  T* bucket = nullptr;
};

// One instance of every kernel, as of kernels.h.
template <typename T>
struct LowRankKernels {
  void (*orthonormal_left)(const OrthonormalArgs<T>& args, const Executor& on);
  void (*orthonormal_right)(const OrthonormalArgs<T>& args, const Executor& on);
  void (*project_left)(const ProjectLeftArgs<T>& args, const Executor& on);
  void (*project_right)(const ProjectRightArgs<T>& args, const Executor& on);
  void (*multiply)(const LowRankProductArgs<T>& args, const Executor& on);
  void (*subtract)(const LowRankProductArgs<T>& args, const Executor& on);
};

// Runs at once, in the calling thread.
template <typename T>
LowRankKernels<T> host_low_rank_kernels();
// As cuda_kernels, of kernels.h.
template <typename T>
LowRankKernels<T> cuda_low_rank_kernels();

extern template LowRankKernels<float> host_low_rank_kernels<float>();
extern template LowRankKernels<double> host_low_rank_kernels<double>();
extern template LowRankKernels<float> cuda_low_rank_kernels<float>();
extern template LowRankKernels<double> cuda_low_rank_kernels<double>();

extern template void project_left<float>(const LowRankShape&, float*, const LowRankOwed<float>&,
                                         const float*, float*);
extern template void project_left<double>(const LowRankShape&, double*, const LowRankOwed<double>&,
                                          const double*, double*);
extern template void project_right<float>(const LowRankShape&, const float*, const float*, float*);
extern template void project_right<double>(const LowRankShape&, const double*, const double*,
                                           double*);
extern template void multiply_factors<float>(const LowRankShape&, const float*, const float*,
                                             float*);
extern template void multiply_factors<double>(const LowRankShape&, const double*, const double*,
                                              double*);
extern template void subtract_product<float>(const LowRankShape&, const float*, const float*,
                                             float*);
extern template void subtract_product<double>(const LowRankShape&, const double*, const double*,
                                              double*);

}  // namespace thinwire
