// PowerSGD's products of one matrix and its factors on the host. Compiled once per kind of vectors;
// the machine's best are found when the program runs.
#include "collectives/compression/kernels/low_rank.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

// Enough of them: others would add nothing to these loops.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "collectives/compression/kernels/low_rank.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "collectives/compression/kernels/low_rank_factors-inl.h"

#ifndef THINWIRE_LOW_RANK_TABLE
#define THINWIRE_LOW_RANK_TABLE
namespace thinwire {
// One kind of vectors' functions.
template <typename T>
struct LowRankTable {
  void (*project_left)(const LowRankShape&, T*, const LowRankOwed<T>&, const T*, T*);
  void (*project_right)(const LowRankShape&, const T*, const T*, T*);
  void (*multiply_factors)(const LowRankShape&, const T*, const T*, T*);
  void (*subtract_product)(const LowRankShape&, const T*, const T*, T*);
};
}  // namespace thinwire
#endif

HWY_BEFORE_NAMESPACE();
namespace thinwire::HWY_NAMESPACE {

// What is owed (LowRankOwed) of Rows rows: `vectors` of columns from j + place on, one of each row,
// and `one` of row i, column j + lane; j is a multiple of 16.
struct NothingOwed {
  static constexpr bool any = false;
};

template <int Rows, typename T>
struct ResidualOwed {
  static constexpr bool any = true;
  const T* residual;
  std::int64_t columns;
  template <typename Vector>
  HWY_INLINE void vectors(std::int64_t j, std::int64_t place, Vector (&owed)[Rows]) const {
    for (std::int64_t i = 0; i < Rows; ++i) {
      const T* from = residual + i * columns + j + place;
      owed[i] = hn::LoadU(Vectors<T>(), from);
      hwy::Prefetch(from + Rows * columns);
    }
  }
  T one(std::int64_t i, std::int64_t j, std::int64_t lane) const {
    return residual[i * columns + j + lane];
  }
};

template <int Rows, int Rank, typename T>
struct ProductOwed {
  static constexpr bool any = true;
  ResidualOwed<Rows, T> residual;
  const T* left;
  LeftRows<Rows, Rank, T> rows;
  Packed<T>* right;
  template <typename Vector>
  HWY_INLINE void vectors(std::int64_t j, std::int64_t place, Vector (&owed)[Rows]) const {
    residual.vectors(j, place, owed);
    hn::Vec<Vectors<T>> products[Rows];
    multiply(rows, right->at(j, 0) + place, products);
    for (std::int64_t i = 0; i < Rows; ++i) owed[i] = hn::Sub(owed[i], products[i]);
  }
  T one(std::int64_t i, std::int64_t j, std::int64_t lane) const {
    const std::int64_t rank = rows.rank();
    return residual.one(i, j, lane) - multiply_one(rank, left + i * rank, right->at(j, 0) + lane);
  }
};

// Rows that are taken together: so many that sums stay in registers.
template <typename T>
constexpr std::int64_t kRowsOfDots = kWidth<T> == kLanes ? 4 : 1;

// For Rows rows: row := row + what is owed, and left[k] := row . right row first + k, for Rank rows
// of it.
template <int Rows, int Rank, typename Owed, typename T>
void dots(const LowRankShape& shape, T* row, const Owed& owed, Packed<T>& right, std::int64_t first,
          T* left) {
  const Vectors<T> d;
  const std::int64_t columns = shape.columns;
  constexpr std::int64_t parts = kLanes / kWidth<T>;
  hn::Vec<Vectors<T>> sums[Rows][Rank][parts];
  for (std::int64_t i = 0; i < Rows; ++i) {
    for (std::int64_t k = 0; k < Rank; ++k) {
      for (std::int64_t part = 0; part < parts; ++part) sums[i][k][part] = hn::Zero(d);
    }
  }
  std::int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    const T* q = right.at(j, first);
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t place = part * kWidth<T>;
      hn::Vec<Vectors<T>> m[Rows];
      if constexpr (Owed::any) owed.vectors(j, place, m);
      for (std::int64_t i = 0; i < Rows; ++i) {
        T* at = row + i * columns + j + place;
        if constexpr (Owed::any) {
          m[i] = hn::Add(hn::LoadU(d, at), m[i]);
          hn::StoreU(m[i], d, at);
        } else {
          m[i] = hn::LoadU(d, at);
        }
        hwy::Prefetch(at + Rows * columns);
      }
      for (std::int64_t k = 0; k < Rank; ++k) {
        const auto factor = hn::Load(d, q + k * kLanes + place);
        for (std::int64_t i = 0; i < Rows; ++i) {
          sums[i][k][part] = hn::Add(sums[i][k][part], hn::Mul(m[i], factor));
        }
      }
    }
  }
  for (std::int64_t i = 0; i < Rows; ++i) {
    HWY_ALIGN T lanes[Rank][kLanes];
    for (std::int64_t k = 0; k < Rank; ++k) {
      for (std::int64_t part = 0; part < parts; ++part) {
        hn::Store(sums[i][k][part], d, lanes[k] + part * kWidth<T>);
      }
    }
    T* tail = row + i * columns + j;
    for (std::int64_t lane = 0; j + lane < columns; ++lane) {
      if constexpr (Owed::any) tail[lane] += owed.one(i, j, lane);
      for (std::int64_t k = 0; k < Rank; ++k) {
        lanes[k][lane] += tail[lane] * right.at(j, first + k)[lane];
      }
    }
    for (std::int64_t k = 0; k < Rank; ++k) {
      for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
        for (std::int64_t lane = 0; lane < width; ++lane) lanes[k][lane] += lanes[k][lane + width];
      }
      left[i * shape.rank + k] = lanes[k][0];
    }
  }
}

template <int Rows, typename Owed, typename T>
void left_of_rows(const LowRankShape& shape, T* row, const Owed& owed, Packed<T>& right, T* left) {
  by_four(shape.rank, [&]<int Rank>(std::int64_t k, std::integral_constant<int, Rank>) {
    if (k == 0) {
      dots<Rows, Rank>(shape, row, owed, right, k, left + k);
    } else {
      dots<Rows, Rank>(shape, row, NothingOwed(), right, k, left + k);
    }
  });
}

template <typename T>
void left_of(const LowRankShape& shape, T* matrix, const LowRankOwed<T>& owed, const T* right,
             T* left) {
  Packed<T> packed(shape, right);
  std::optional<Packed<T>> owed_right;
  if (owed.left != nullptr) owed_right.emplace(shape, owed.right);
  const auto rows_at = [&]<int Rows>(std::int64_t i, std::integral_constant<int, Rows>) {
    T* row = matrix + i * shape.columns;
    T* to = left + i * shape.rank;
    if (owed.residual == nullptr) {
      return left_of_rows<Rows>(shape, row, NothingOwed(), packed, to);
    }
    const ResidualOwed<Rows, T> residual{owed.residual + i * shape.columns, shape.columns};
    if (!owed_right) return left_of_rows<Rows>(shape, row, residual, packed, to);
    const T* factor = owed.left + i * shape.rank;
    with_rank(shape.rank, [&]<int Rank>(std::integral_constant<int, Rank>) {
      const ProductOwed<Rows, Rank, T> product{
          residual, factor, LeftRows<Rows, Rank, T>(shape.rank, factor), &*owed_right};
      left_of_rows<Rows>(shape, row, product, packed, to);
    });
  };
  constexpr std::int64_t together = kRowsOfDots<T>;
  std::int64_t i = 0;
  for (; i + together <= shape.rows; i += together) {
    rows_at(i, std::integral_constant<int, together>{});
  }
  for (; i < shape.rows; ++i) rows_at(i, std::integral_constant<int, 1>{});
}

// right rows first + k := right + left^T of four rows of the matrix, for Rank columns of `left`.
template <int Rank, typename T>
void add_four_rows(const LowRankShape& shape, const T* rows, const T* left, Packed<T>& right,
                   std::int64_t first) {
  const Vectors<T> d;
  const std::int64_t columns = shape.columns;
  hn::Vec<Vectors<T>> p[4][Rank];
  for (std::int64_t i = 0; i < 4; ++i) {
    for (std::int64_t k = 0; k < Rank; ++k) p[i][k] = hn::Set(d, left[i * shape.rank + k]);
  }
  std::int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    T* packed = right.at(j, first);
    for (std::int64_t place = 0; place < kLanes; place += kWidth<T>) {
      const T* from = rows + j + place;
      const auto m0 = hn::LoadU(d, from);
      const auto m1 = hn::LoadU(d, from + columns);
      const auto m2 = hn::LoadU(d, from + 2 * columns);
      const auto m3 = hn::LoadU(d, from + 3 * columns);
      for (std::int64_t i = 4; i < 8; ++i) hwy::Prefetch(from + i * columns);
      for (std::int64_t k = 0; k < Rank; ++k) {
        T* to = packed + k * kLanes + place;
        const auto one = hn::Add(hn::Mul(p[0][k], m0), hn::Mul(p[1][k], m1));
        const auto other = hn::Add(hn::Mul(p[2][k], m2), hn::Mul(p[3][k], m3));
        hn::Store(hn::Add(hn::Load(d, to), hn::Add(one, other)), d, to);
      }
    }
  }
  for (std::int64_t lane = 0; j + lane < columns; ++lane) {
    for (std::int64_t k = 0; k < Rank; ++k) {
      const auto product = [&](std::int64_t i) {
        return left[i * shape.rank + k] * rows[i * columns + j + lane];
      };
      right.at(j, first + k)[lane] += (product(0) + product(1)) + (product(2) + product(3));
    }
  }
}

template <typename T>
void right_of(const LowRankShape& shape, const T* matrix, const T* left, T* right) {
  const std::int64_t columns = shape.columns;
  const std::int64_t rank = shape.rank;
  Packed<T> packed(shape);
  std::int64_t i = 0;
  while (i < shape.rows) {
    const std::int64_t end = std::min(shape.rows, i + low_rank_part);
    if (i > 0) packed.clear();
    const bool first = i == 0;
    for (; i + 4 <= end; i += 4) {
      by_four(rank, [&]<int Rank>(std::int64_t k, std::integral_constant<int, Rank>) {
        add_four_rows<Rank>(shape, matrix + i * columns, left + i * rank + k, packed, k);
      });
    }
    for (; i < end; ++i) packed.add_row(matrix + i * columns, left + i * rank);
    if (first) {
      packed.unpack(right);
    } else {
      packed.add_to(right);
    }
  }
}

// What becomes of a product: it goes past the caches to where all is aligned (`stream`), or takes
// the matrix's place, or is taken from it.
enum class Product { stream, store, subtract };

template <int Rows, int Rank, Product kind, typename T>
void product_of_rows(const LowRankShape& shape, const T* left, Packed<T>& right, T* row) {
  const Vectors<T> d;
  const std::int64_t columns = shape.columns;
  const std::int64_t rank = shape.rank;
  const LeftRows<Rows, Rank, T> p(rank, left);
  std::int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    const T* q = right.at(j, 0);
    for (std::int64_t place = 0; place < kLanes; place += kWidth<T>) {
      hn::Vec<Vectors<T>> products[Rows];
      multiply(p, q + place, products);
      for (std::int64_t i = 0; i < Rows; ++i) {
        T* to = row + i * columns + j + place;
        if constexpr (kind == Product::stream) {
          hn::Stream(products[i], d, to);
        } else if constexpr (kind == Product::store) {
          hn::StoreU(products[i], d, to);
        } else {
          hn::StoreU(hn::Sub(hn::LoadU(d, to), products[i]), d, to);
          hwy::Prefetch(to + Rows * columns);
        }
      }
    }
  }
  for (std::int64_t i = 0; i < Rows; ++i) {
    for (std::int64_t lane = 0; j + lane < columns; ++lane) {
      const T product = multiply_one(rank, left + i * rank, right.at(j, 0) + lane);
      T& to = row[i * columns + j + lane];
      to = kind == Product::subtract ? to - product : product;
    }
  }
}

template <Product kind, typename T>
void product_of_matrix(const LowRankShape& shape, const T* left, const T* right, T* matrix) {
  Packed<T> packed(shape, right);
  with_rank(shape.rank, [&]<int Rank>(std::integral_constant<int, Rank>) {
    const auto rows_at = [&]<int Rows>(std::int64_t i, std::integral_constant<int, Rows>) {
      product_of_rows<Rows, Rank, kind>(shape, left + i * shape.rank, packed,
                                        matrix + i * shape.columns);
    };
    std::int64_t i = 0;
    for (; i + 4 <= shape.rows; i += 4) rows_at(i, std::integral_constant<int, 4>{});
    for (; i < shape.rows; ++i) rows_at(i, std::integral_constant<int, 1>{});
  });
}

template <typename T>
void product_of(const LowRankShape& shape, const T* left, const T* right, T* matrix) {
  constexpr std::size_t alignment = static_cast<std::size_t>(kWidth<T>) * sizeof(T);
  if (reinterpret_cast<std::uintptr_t>(matrix) % alignment == 0 && shape.columns % kLanes == 0) {
    product_of_matrix<Product::stream>(shape, left, right, matrix);
    hwy::FlushStream();
  } else {
    product_of_matrix<Product::store>(shape, left, right, matrix);
  }
}

template <typename T>
void subtract(const LowRankShape& shape, const T* left, const T* right, T* matrix) {
  product_of_matrix<Product::subtract>(shape, left, right, matrix);
}

LowRankTable<float> float_table() {
  return {left_of<float>, right_of<float>, product_of<float>, subtract<float>};
}

LowRankTable<double> double_table() {
  return {left_of<double>, right_of<double>, product_of<double>, subtract<double>};
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
void project_left(const LowRankShape& shape, T* matrix, const LowRankOwed<T>& owed, const T* right,
                  T* left) {
  table<T>().project_left(shape, matrix, owed, right, left);
}

template <typename T>
void project_right(const LowRankShape& shape, const T* matrix, const T* left, T* right) {
  table<T>().project_right(shape, matrix, left, right);
}

template <typename T>
void multiply_factors(const LowRankShape& shape, const T* left, const T* right, T* matrix) {
  table<T>().multiply_factors(shape, left, right, matrix);
}

template <typename T>
void subtract_product(const LowRankShape& shape, const T* left, const T* right, T* matrix) {
  table<T>().subtract_product(shape, left, right, matrix);
}

template void project_left<float>(const LowRankShape&, float*, const LowRankOwed<float>&,
                                  const float*, float*);
template void project_left<double>(const LowRankShape&, double*, const LowRankOwed<double>&,
                                   const double*, double*);
template void project_right<float>(const LowRankShape&, const float*, const float*, float*);
template void project_right<double>(const LowRankShape&, const double*, const double*, double*);
template void multiply_factors<float>(const LowRankShape&, const float*, const float*, float*);
template void multiply_factors<double>(const LowRankShape&, const double*, const double*, double*);
template void subtract_product<float>(const LowRankShape&, const float*, const float*, float*);
template void subtract_product<double>(const LowRankShape&, const double*, const double*, double*);

}  // namespace thinwire
#endif  // HWY_ONCE
