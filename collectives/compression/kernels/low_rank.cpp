// Compiled once per kind of vectors; the machine's best are found when the program runs.
#include "collectives/compression/kernels/low_rank.h"

#include <algorithm>
#include <type_traits>

// Enough of them: others would add nothing to these loops.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "collectives/compression/kernels/low_rank.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef THINWIRE_LOW_RANK_TABLE
#define THINWIRE_LOW_RANK_TABLE
namespace thinwire {
// One kind of vectors' functions.
template <typename T>
struct LowRankTable {
  void (*project_left)(const LowRankShape&, T*, const T*, const T*, T*);
  void (*project_right)(const LowRankShape&, const T*, const T*, T*);
  void (*multiply_factors)(const LowRankShape&, const T*, const T*, T*);
  void (*split_matrix)(const LowRankShape&, const T*, const T*, const T*, T*, T*);
};
}  // namespace thinwire
#endif

HWY_BEFORE_NAMESPACE();
namespace thinwire::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr std::int64_t kLanes = 16;

template <typename T>
using Vectors = hn::CappedTag<T, kLanes>;

template <typename T>
constexpr std::int64_t kWidth = static_cast<std::int64_t>(hn::MaxLanes(Vectors<T>{}));

// Calls `body(constant)` with the rank as a constant where it is small, so that loops over it are
// unrolled, and with 0 otherwise.
template <typename Body>
void with_rank(std::int64_t rank, Body body) {
  if (rank == 1) return body(std::integral_constant<int, 1>{});
  if (rank == 2) return body(std::integral_constant<int, 2>{});
  if (rank == 3) return body(std::integral_constant<int, 3>{});
  if (rank == 4) return body(std::integral_constant<int, 4>{});
  body(std::integral_constant<int, 0>{});
}

// left[k] := row . right row k, for Rank rows of `right`.
template <int Rank, typename T>
void dots(std::int64_t columns, const T* row, const T* right, T* left) {
  const Vectors<T> d;
  constexpr std::int64_t parts = kLanes / kWidth<T>;
  hn::Vec<Vectors<T>> sums[Rank][parts];
  for (auto& sum : sums) {
    for (auto& part : sum) part = hn::Zero(d);
  }
  std::int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    for (std::int64_t part = 0; part < parts; ++part) {
      const auto m = hn::LoadU(d, row + j + part * kWidth<T>);
      for (std::int64_t k = 0; k < Rank; ++k) {
        const auto q = hn::LoadU(d, right + k * columns + j + part * kWidth<T>);
        sums[k][part] = hn::Add(sums[k][part], hn::Mul(m, q));
      }
    }
  }
  for (std::int64_t k = 0; k < Rank; ++k) {
    HWY_ALIGN T lanes[kLanes];
    for (std::int64_t part = 0; part < parts; ++part) {
      hn::Store(sums[k][part], d, lanes + part * kWidth<T>);
    }
    for (std::int64_t lane = 0; j + lane < columns; ++lane) {
      lanes[lane] += row[j + lane] * right[k * columns + j + lane];
    }
    for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (std::int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    }
    left[k] = lanes[0];
  }
}

template <typename T>
void add(std::int64_t count, const T* from, T* to) {
  const Vectors<T> d;
  std::int64_t j = 0;
  for (; j + kWidth<T> <= count; j += kWidth<T>) {
    hn::StoreU(hn::Add(hn::LoadU(d, to + j), hn::LoadU(d, from + j)), d, to + j);
  }
  for (; j < count; ++j) to[j] += from[j];
}

template <typename T>
void left_of(const LowRankShape& shape, T* matrix, const T* residual, const T* right, T* left) {
  const std::int64_t columns = shape.columns;
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    T* row = matrix + i * columns;
    if (residual != nullptr) add(columns, residual + i * columns, row);
    T* to = left + i * shape.rank;
    std::int64_t k = 0;
    for (; k + 4 < shape.rank; k += 4) dots<4>(columns, row, right + k * columns, to + k);
    with_rank(shape.rank - k, [&]<int Rank>(std::integral_constant<int, Rank>) {
      if constexpr (Rank > 0) dots<Rank>(columns, row, right + k * columns, to + k);
    });
  }
}

// right := right + left^T of four rows of the matrix, for Rank columns of `left`.
template <int Rank, typename T>
void add_four_rows(const LowRankShape& shape, const T* rows, const T* left, T* right) {
  const Vectors<T> d;
  const std::int64_t columns = shape.columns;
  hn::Vec<Vectors<T>> p[4][Rank];
  for (std::int64_t i = 0; i < 4; ++i) {
    for (std::int64_t k = 0; k < Rank; ++k) p[i][k] = hn::Set(d, left[i * shape.rank + k]);
  }
  std::int64_t j = 0;
  for (; j + kWidth<T> <= columns; j += kWidth<T>) {
    const auto m0 = hn::LoadU(d, rows + j);
    const auto m1 = hn::LoadU(d, rows + columns + j);
    const auto m2 = hn::LoadU(d, rows + 2 * columns + j);
    const auto m3 = hn::LoadU(d, rows + 3 * columns + j);
    for (std::int64_t k = 0; k < Rank; ++k) {
      T* to = right + k * columns + j;
      const auto first = hn::Add(hn::Mul(p[0][k], m0), hn::Mul(p[1][k], m1));
      const auto second = hn::Add(hn::Mul(p[2][k], m2), hn::Mul(p[3][k], m3));
      hn::StoreU(hn::Add(hn::LoadU(d, to), hn::Add(first, second)), d, to);
    }
  }
  for (; j < columns; ++j) {
    for (std::int64_t k = 0; k < Rank; ++k) {
      const auto product = [&](std::int64_t i) {
        return left[i * shape.rank + k] * rows[i * columns + j];
      };
      right[k * columns + j] += (product(0) + product(1)) + (product(2) + product(3));
    }
  }
}

template <typename T>
void right_of(const LowRankShape& shape, const T* matrix, const T* left, T* right) {
  const std::int64_t columns = shape.columns;
  const std::int64_t rank = shape.rank;
  std::fill_n(right, rank * columns, T{0});
  std::int64_t i = 0;
  for (; i + 4 <= shape.rows; i += 4) {
    const T* rows = matrix + i * columns;
    const T* p = left + i * rank;
    std::int64_t k = 0;
    for (; k + 4 < rank; k += 4) add_four_rows<4>(shape, rows, p + k, right + k * columns);
    with_rank(rank - k, [&]<int Rank>(std::integral_constant<int, Rank>) {
      if constexpr (Rank > 0) add_four_rows<Rank>(shape, rows, p + k, right + k * columns);
    });
  }
  for (; i < shape.rows; ++i) {
    for (std::int64_t k = 0; k < rank; ++k) {
      const T p = left[i * rank + k];
      for (std::int64_t j = 0; j < columns; ++j)
        right[k * columns + j] += p * matrix[i * columns + j];
    }
  }
}

// Calls `body(j, products)` for vectors, and for single elements at the end of a row; `products(q)`
// is the vector or element j of left . q.
template <int Rank, typename T, typename Body>
void for_products(const LowRankShape& shape, const T* left, Body body) {
  const Vectors<T> d;
  const std::int64_t columns = shape.columns;
  const std::int64_t rank = Rank > 0 ? Rank : shape.rank;
  std::int64_t j = 0;
  for (; j + kWidth<T> <= columns; j += kWidth<T>) {
    body(d, j, [&](const T* q) {
      auto sum = hn::Mul(hn::Set(d, left[0]), hn::LoadU(d, q + j));
      for (std::int64_t k = 1; k < rank; ++k) {
        sum = hn::Add(sum, hn::Mul(hn::Set(d, left[k]), hn::LoadU(d, q + k * columns + j)));
      }
      return sum;
    });
  }
  const hn::CappedTag<T, 1> one;
  for (; j < columns; ++j) {
    body(one, j, [&](const T* q) {
      T sum = left[0] * q[j];
      for (std::int64_t k = 1; k < rank; ++k) sum += left[k] * q[k * columns + j];
      return hn::Set(one, sum);
    });
  }
}

template <typename T>
void product_of(const LowRankShape& shape, const T* left, const T* right, T* estimate) {
  with_rank(shape.rank, [&]<int Rank>(std::integral_constant<int, Rank>) {
    for (std::int64_t i = 0; i < shape.rows; ++i) {
      T* to = estimate + i * shape.columns;
      for_products<Rank>(shape, left + i * shape.rank,
                         [&](auto d, std::int64_t j, auto products)
                             HWY_ATTR { hn::StoreU(products(right), d, to + j); });
    }
  });
}

template <typename T>
void split(const LowRankShape& shape, const T* left, const T* right, const T* own, T* matrix,
           T* estimate) {
  with_rank(shape.rank, [&]<int Rank>(std::integral_constant<int, Rank>) {
    for (std::int64_t i = 0; i < shape.rows; ++i) {
      T* to = estimate + i * shape.columns;
      T* row = matrix + i * shape.columns;
      for_products<Rank>(shape, left + i * shape.rank,
                         [&](auto d, std::int64_t j, auto products) HWY_ATTR {
                           const auto m = hn::LoadU(d, row + j);
                           hn::StoreU(products(right), d, to + j);
                           hn::StoreU(hn::Sub(m, products(own)), d, row + j);
                         });
    }
  });
}

LowRankTable<float> float_table() {
  return {left_of<float>, right_of<float>, product_of<float>, split<float>};
}

LowRankTable<double> double_table() {
  return {left_of<double>, right_of<double>, product_of<double>, split<double>};
}

}  // namespace thinwire::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {
namespace {

HWY_EXPORT(float_table);
HWY_EXPORT(double_table);

template <typename T>
LowRankTable<T> table() {
  if constexpr (std::is_same_v<T, double>) {
    return HWY_DYNAMIC_DISPATCH(double_table)();
  } else {
    return HWY_DYNAMIC_DISPATCH(float_table)();
  }
}

}  // namespace

template <typename T>
void project_left(const LowRankShape& shape, T* matrix, const T* residual, const T* right,
                  T* left) {
  table<T>().project_left(shape, matrix, residual, right, left);
}

template <typename T>
void project_right(const LowRankShape& shape, const T* matrix, const T* left, T* right) {
  table<T>().project_right(shape, matrix, left, right);
}

template <typename T>
void multiply_factors(const LowRankShape& shape, const T* left, const T* right, T* estimate) {
  table<T>().multiply_factors(shape, left, right, estimate);
}

template <typename T>
void split_matrix(const LowRankShape& shape, const T* left, const T* right, const T* own, T* matrix,
                  T* estimate) {
  table<T>().split_matrix(shape, left, right, own, matrix, estimate);
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
#endif  // HWY_ONCE
