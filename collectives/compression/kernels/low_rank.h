// Products of a matrix with factors of a few columns: what PowerSGD (reducer/power_sgd.h) does to
// memory on the host, a pass over the matrix each.
//
// All matrices are row by row: M is rows x columns, a left factor P is rows x rank, a right factor
// is kept transposed, Q^T of rank x columns. Nothing may overlap. T is float or double.
//
// Equal bits on every machine: a product and its addition are rounded apart, and sums have a fixed
// order. Over columns they are formed in 16 lanes, column j in lane j % 16, and the lanes are
// folded, lane += lane + width for width 8, 4, 2, 1. Over rows they are formed in groups of four
// from the first row on, (x0 + x1) + (x2 + x3), added one after another; rows that are left over
// are added one by one. Over the rank they are formed in order.
#pragma once

#include <cstdint>

namespace thinwire {

struct LowRankShape {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t rank = 0;
};

// matrix := M = matrix + residual (null: M = matrix), left := M Q.
template <typename T>
void project_left(const LowRankShape& shape, T* matrix, const T* residual, const T* right, T* left);

// right := Q^T = P^T M.
template <typename T>
void project_right(const LowRankShape& shape, const T* matrix, const T* left, T* right);

// estimate := P Q^T.
template <typename T>
void multiply_factors(const LowRankShape& shape, const T* left, const T* right, T* estimate);

// estimate := P Q^T, matrix := matrix - P own^T.
template <typename T>
void split_matrix(const LowRankShape& shape, const T* left, const T* right, const T* own, T* matrix,
                  T* estimate);

extern template void project_left<float>(const LowRankShape&, float*, const float*, const float*,
                                         float*);
extern template void project_left<double>(const LowRankShape&, double*, const double*,
                                          const double*, double*);
extern template void project_right<float>(const LowRankShape&, const float*, const float*, float*);
extern template void project_right<double>(const LowRankShape&, const double*, const double*,
                                           double*);
extern template void multiply_factors<float>(const LowRankShape&, const float*, const float*,
                                             float*);
extern template void multiply_factors<double>(const LowRankShape&, const double*, const double*,
                                              double*);
extern template void split_matrix<float>(const LowRankShape&, const float*, const float*,
                                         const float*, float*, float*);
extern template void split_matrix<double>(const LowRankShape&, const double*, const double*,
                                          const double*, double*, double*);

}  // namespace thinwire
