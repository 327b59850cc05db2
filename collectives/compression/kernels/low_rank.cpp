#include "collectives/compression/kernels/low_rank.h"

namespace thinwire {
namespace {

constexpr std::int64_t kLanes = 16;

template <typename T>
T dot(std::int64_t count, const T* a, const T* b) {
  T lanes[kLanes] = {};
  std::int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[j + lane] * b[j + lane];
  }
  for (std::int64_t lane = 0; j + lane < count; ++lane) lanes[lane] += a[j + lane] * b[j + lane];
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace

template <typename T>
void project_left(const LowRankShape& shape, T* matrix, const T* residual, const T* right,
                  T* left) {
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    T* row = matrix + i * shape.columns;
    if (residual != nullptr) {
      const T* kept = residual + i * shape.columns;
      for (std::int64_t j = 0; j < shape.columns; ++j) row[j] += kept[j];
    }
    for (std::int64_t k = 0; k < shape.rank; ++k) {
      left[i * shape.rank + k] = dot(shape.columns, row, right + k * shape.columns);
    }
  }
}

template <typename T>
void project_right(const LowRankShape& shape, const T* matrix, const T* left, T* right) {
  const std::int64_t columns = shape.columns;
  const std::int64_t rank = shape.rank;
  for (std::int64_t n = 0; n < rank * columns; ++n) right[n] = 0;
  std::int64_t i = 0;
  for (; i + 4 <= shape.rows; i += 4) {
    const T* row = matrix + i * columns;
    const T* p = left + i * rank;
    for (std::int64_t k = 0; k < rank; ++k) {
      for (std::int64_t j = 0; j < columns; ++j) {
        right[k * columns + j] +=
            (p[k] * row[j] + p[rank + k] * row[columns + j]) +
            (p[2 * rank + k] * row[2 * columns + j] + p[3 * rank + k] * row[3 * columns + j]);
      }
    }
  }
  for (; i < shape.rows; ++i) {
    for (std::int64_t k = 0; k < rank; ++k) {
      for (std::int64_t j = 0; j < columns; ++j) {
        right[k * columns + j] += left[i * rank + k] * matrix[i * columns + j];
      }
    }
  }
}

template <typename T>
void multiply_factors(const LowRankShape& shape, const T* left, const T* right, T* estimate) {
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t j = 0; j < shape.columns; ++j) {
      T sum = left[i * shape.rank] * right[j];
      for (std::int64_t k = 1; k < shape.rank; ++k) {
        sum += left[i * shape.rank + k] * right[k * shape.columns + j];
      }
      estimate[i * shape.columns + j] = sum;
    }
  }
}

template <typename T>
void split_matrix(const LowRankShape& shape, const T* left, const T* right, const T* own, T* matrix,
                  T* estimate) {
  multiply_factors(shape, left, right, estimate);
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t j = 0; j < shape.columns; ++j) {
      T sum = left[i * shape.rank] * own[j];
      for (std::int64_t k = 1; k < shape.rank; ++k) {
        sum += left[i * shape.rank + k] * own[k * shape.columns + j];
      }
      matrix[i * shape.columns + j] -= sum;
    }
  }
}

template void project_left<float>(const LowRankShape&, float*, const float*, const float*, float*);
template void project_left<double>(const LowRankShape&, double*, const double*, const double*,
                                   double*);
template void project_right<float>(const LowRankShape&, const float*, const float*, float*);
template void project_right<double>(const LowRankShape&, const double*, const double*, double*);
template void multiply_factors<float>(const LowRankShape&, const float*, const float*, float*);
template void multiply_factors<double>(const LowRankShape&, const double*, const double*, double*);
template void split_matrix<float>(const LowRankShape&, const float*, const float*, const float*,
                                  float*, float*);
template void split_matrix<double>(const LowRankShape&, const double*, const double*, const double*,
                                   double*, double*);

}  // namespace thinwire
