// Factors of a few columns as PowerSGD's kernels on the host read them (low_rank.cpp): a left one
// in registers, a right one packed for the cache. Included once per target of Google Highway.
#if defined(THINWIRE_LOW_RANK_FACTORS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_LOW_RANK_FACTORS_INL_H
#undef THINWIRE_LOW_RANK_FACTORS_INL_H
#else
#define THINWIRE_LOW_RANK_FACTORS_INL_H
#endif

#include <hwy/aligned_allocator.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "collectives/compression/kernels/low_rank.h"

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

// Calls `body(first, constant)` for groups of up to four of `rank` columns of a factor.
template <typename Body>
void by_four(std::int64_t rank, Body body) {
  std::int64_t k = 0;
  for (; k + 4 < rank; k += 4) body(k, std::integral_constant<int, 4>{});
  with_rank(rank - k, [&]<int Rank>(std::integral_constant<int, Rank> constant) {
    if constexpr (Rank > 0) body(k, constant);
  });
}

// A right factor in pieces of 16 columns, rank rows of each, one after another: rows that are a
// multiple of a page apart would share a few lines of the cache. Columns are filled up with zeros.
template <typename T>
class Packed {
 public:
  Packed(const LowRankShape& shape)
      : rank_(shape.rank),
        columns_(shape.columns),
        values_(hwy::AllocateAligned<T>(static_cast<std::size_t>(padded()))) {
    clear();
  }
  Packed(const LowRankShape& shape, const T* factor) : Packed(shape) {
    each([&](T* packed, std::int64_t from, std::int64_t count) {
      std::copy_n(factor + from, count, packed);
    });
  }
  void unpack(T* factor) {
    each([&](const T* packed, std::int64_t to, std::int64_t count) {
      std::copy_n(packed, count, factor + to);
    });
  }
  void add_to(T* factor) {
    each([&](const T* packed, std::int64_t to, std::int64_t count) {
      for (std::int64_t lane = 0; lane < count; ++lane) factor[to + lane] += packed[lane];
    });
  }
  // Adds left^T of one row of a matrix.
  void add_row(const T* row, const T* left) {
    for (std::int64_t j = 0; j < columns_; j += kLanes) {
      const std::int64_t count = std::min(kLanes, columns_ - j);
      for (std::int64_t k = 0; k < rank_; ++k) {
        for (std::int64_t lane = 0; lane < count; ++lane) at(j, k)[lane] += left[k] * row[j + lane];
      }
    }
  }
  void clear() { std::fill_n(values_.get(), padded(), T{0}); }
  // Row k's columns from j on, a multiple of 16, to the next one.
  T* at(std::int64_t j, std::int64_t k) { return values_.get() + j * rank_ + k * kLanes; }

 private:
  template <typename Body>
  void each(Body body) {
    for (std::int64_t j = 0; j < columns_; j += kLanes) {
      const std::int64_t count = std::min(kLanes, columns_ - j);
      for (std::int64_t k = 0; k < rank_; ++k) body(at(j, k), k * columns_ + j, count);
    }
  }

  std::int64_t padded() const { return (columns_ + kLanes - 1) / kLanes * kLanes * rank_; }

  std::int64_t rank_;
  std::int64_t columns_;
  hwy::AlignedFreeUniquePtr<T[]> values_;
};

// P, for some rows: vectors that stay in registers where the rank is a constant.
template <int Rows, int Rank, typename T>
struct LeftRows {
  LeftRows(std::int64_t, const T* left) {
    for (std::int64_t i = 0; i < Rows; ++i) {
      for (std::int64_t k = 0; k < Rank; ++k) {
        values[i][k] = hn::Set(Vectors<T>(), left[i * Rank + k]);
      }
    }
  }
  std::int64_t rank() const { return Rank; }
  auto at(std::int64_t i, std::int64_t k) const { return values[i][k]; }
  hn::Vec<Vectors<T>> values[Rows][Rank];
};

template <int Rows, typename T>
struct LeftRows<Rows, 0, T> {
  LeftRows(std::int64_t any_rank, const T* rows) : number(any_rank), left(rows) {}
  std::int64_t rank() const { return number; }
  auto at(std::int64_t i, std::int64_t k) const {
    return hn::Set(Vectors<T>(), left[i * number + k]);
  }
  std::int64_t number;
  const T* left;
};

// products[i] := sum over k of P(i, k) Q(k).
template <int Rows, typename Left, typename T, typename Vector>
HWY_INLINE void multiply(const Left& left, const T* q, Vector (&products)[Rows]) {
  const Vectors<T> d;
  const auto first = hn::Load(d, q);
  for (std::int64_t i = 0; i < Rows; ++i) products[i] = hn::Mul(left.at(i, 0), first);
  for (std::int64_t k = 1; k < left.rank(); ++k) {
    const auto factor = hn::Load(d, q + k * kLanes);
    for (std::int64_t i = 0; i < Rows; ++i) {
      products[i] = hn::Add(products[i], hn::Mul(left.at(i, k), factor));
    }
  }
}

template <typename T>
T multiply_one(std::int64_t rank, const T* left, const T* q) {
  T sum = left[0] * q[0];
  for (std::int64_t k = 1; k < rank; ++k) sum += left[k] * q[k * kLanes];
  return sum;
}

}  // namespace thinwire::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
