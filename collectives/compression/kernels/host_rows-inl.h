// The vocabulary of the kernels' bodies (messages-inl.h, codings/, bodies-inl.h) on the host: a row
// is as many vectors as 32 values take. Included once per target of Google Highway, which has the
// same operations for every kind of vector.
#if defined(THINWIRE_HOST_ROWS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_HOST_ROWS_INL_H
#undef THINWIRE_HOST_ROWS_INL_H
#else
#define THINWIRE_HOST_ROWS_INL_H
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "collectives/compression/kernels/kernels.h"

// Functions of a body, and one that is compiled in one piece with all that it calls.
#define THINWIRE_BODY inline
#define THINWIRE_WHOLE_BODY __attribute__((flatten, noinline))
// A file with another form of the same kernels (host_whole.cpp) has them in a namespace of its own.
#ifdef THINWIRE_WHOLE_STORES
#define THINWIRE_FORM_BEGIN namespace whole_stores {
#define THINWIRE_FORM_END }
#else
#define THINWIRE_FORM_BEGIN
#define THINWIRE_FORM_END
#endif
#define THINWIRE_ROWS_BEGIN           \
  HWY_BEFORE_NAMESPACE();             \
  namespace thinwire::HWY_NAMESPACE { \
  THINWIRE_FORM_BEGIN
#define THINWIRE_ROWS_END \
  THINWIRE_FORM_END       \
  }                       \
  HWY_AFTER_NAMESPACE();

THINWIRE_ROWS_BEGIN

namespace hn = hwy::HWY_NAMESPACE;

constexpr int row_lanes = 32;
constexpr int readers_kept = 2;  // payloads whose scales stay in registers
template <typename T>
using Tag = hn::ScalableTag<T>;
template <typename T>
constexpr std::size_t part_lanes = HWY_LANES(T);
template <typename T>
constexpr std::size_t parts = row_lanes / part_lanes<T>;

// One value per lane.
template <typename T>
struct Row {
  hn::Vec<Tag<T>> part[parts<T>];
};
// One answer per lane.
template <typename T>
struct Mask {
  hn::Mask<Tag<T>> part[parts<T>];
};
template <typename T>
using BitsOf = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

// Where a row lies in a block, and how many of its lanes are there.
struct WholeRow {
  std::int64_t begin;
  static constexpr int n = row_lanes;
};
struct LastRow {
  std::int64_t begin;
  int n;
};

template <typename T, typename Body>
HWY_INLINE void each_part(Body body) {
#if HWY_TARGET == HWY_SCALAR
  for (std::size_t p = 0; p < parts<T>; ++p) body(p);
#else
  // Not a loop: parts shall stay in registers.
  [&]<std::size_t... P>(std::index_sequence<P...>) {
    (body(std::integral_constant<std::size_t, P>{}), ...);
  }
  (std::make_index_sequence<parts<T>>{});
#endif
}
template <typename T, typename Part>
HWY_INLINE Row<T> row_of(Part part) {
  Row<T> row;
  each_part<T>([&](auto p) { row.part[p] = part(p); });
  return row;
}
template <typename T, typename Part>
HWY_INLINE Mask<T> mask_of(Part part) {
  Mask<T> mask;
  each_part<T>([&](auto p) { mask.part[p] = part(p); });
  return mask;
}

// Calls `body` with every row of `count` elements.
template <typename Body>
HWY_INLINE void rows(std::int64_t count, Body body) {
  std::int64_t begin = 0;
  for (; begin + row_lanes <= count; begin += row_lanes) body(WholeRow{begin});
  if (begin < count) body(LastRow{begin, static_cast<int>(count - begin)});
}
HWY_INLINE WholeRow moved(WholeRow row, std::int64_t by) {
  return {row.begin + by};
}
HWY_INLINE LastRow moved(LastRow row, std::int64_t by) {
  return {row.begin + by, row.n};
}

template <typename T>
HWY_INLINE Row<T> fill(T value) {
  return row_of<T>([&](auto) { return hn::Set(Tag<T>(), value); });
}
template <typename T>
HWY_INLINE Row<T> zeros() {
  return row_of<T>([&](auto) { return hn::Zero(Tag<T>()); });
}
HWY_INLINE Row<std::uint32_t> lane_numbers() {
  return row_of<std::uint32_t>([&](auto p) {
    const auto first = static_cast<std::uint32_t>(p * part_lanes<std::uint32_t>);
    return hn::Iota(Tag<std::uint32_t>(), first);
  });
}

// Rows of memory; lanes that are not there are zero. Packed rows are not aligned.
template <typename T>
HWY_INLINE Row<T> load_packed(const char* from, WholeRow row) {
  const T* values =
      reinterpret_cast<const T*>(from + row.begin * static_cast<std::int64_t>(sizeof(T)));
  return row_of<T>([&](auto p) { return hn::LoadU(Tag<T>(), values + p * part_lanes<T>); });
}
template <typename T>
HWY_INLINE Row<T> load_packed(const char* from, LastRow row) {
  HWY_ALIGN T values[row_lanes] = {};
  std::memcpy(values, from + row.begin * static_cast<std::int64_t>(sizeof(T)),
              static_cast<std::size_t>(row.n) * sizeof(T));
  return row_of<T>([&](auto p) { return hn::Load(Tag<T>(), values + p * part_lanes<T>); });
}
template <typename T>
HWY_INLINE void store_packed(char* to, WholeRow row, const Row<T>& x) {
  T* values = reinterpret_cast<T*>(to + row.begin * static_cast<std::int64_t>(sizeof(T)));
  each_part<T>([&](auto p) { hn::StoreU(x.part[p], Tag<T>(), values + p * part_lanes<T>); });
}
template <typename T>
HWY_INLINE void spill(const Row<T>& x, T* to) {
  each_part<T>([&](auto p) { hn::StoreU(x.part[p], Tag<T>(), to + p * part_lanes<T>); });
}
template <typename T>
HWY_INLINE void store_packed(char* to, LastRow row, const Row<T>& x) {
  HWY_ALIGN T values[row_lanes];
  spill(x, values);
  std::memcpy(to + row.begin * static_cast<std::int64_t>(sizeof(T)), values,
              static_cast<std::size_t>(row.n) * sizeof(T));
}
template <typename T, typename Place>
HWY_INLINE Row<T> load(const T* from, Place row) {
  return load_packed<T>(reinterpret_cast<const char*>(from), row);
}
// In halves of 64-byte vectors: Zen 4 is slower, by a tenth of an encoding, when one store fills a
// line that has only just been asked for. Others may be faster with whole ones.
template <typename T>
HWY_INLINE void store(T* to, WholeRow row, const Row<T>& x) {
#if HWY_TARGET == HWY_AVX3 && !defined(THINWIRE_WHOLE_STORES)
  const hn::Half<Tag<T>> half;
  each_part<T>([&](auto p) {
    T* const values = to + row.begin + p * part_lanes<T>;
    hn::StoreU(hn::LowerHalf(half, x.part[p]), half, values);
    hn::StoreU(hn::UpperHalf(half, x.part[p]), half, values + part_lanes<T> / 2);
  });
#else
  store_packed(reinterpret_cast<char*>(to), row, x);
#endif
}
template <typename T>
HWY_INLINE void store(T* to, LastRow row, const Row<T>& x) {
  store_packed(reinterpret_cast<char*>(to), row, x);
}

// Past the cache, which saves that the line is read first; where it is not aligned, as `store`. Not
// for what is read again soon. `stores_are_done` before another thread may read it.
template <typename T>
HWY_INLINE void store_past_cache(T* to, WholeRow row, const Row<T>& x) {
  T* const values = to + row.begin;
  if (reinterpret_cast<std::uintptr_t>(values) % (part_lanes<T> * sizeof(T)) != 0) {
    return store(to, row, x);
  }
  each_part<T>([&](auto p) { hn::Stream(x.part[p], Tag<T>(), values + p * part_lanes<T>); });
}
template <typename T>
HWY_INLINE void store_past_cache(T* to, LastRow row, const Row<T>& x) {
  store(to, row, x);
}
HWY_INLINE void stores_are_done() {
  hwy::FlushStream();
}

// From memory that nothing writes meanwhile.
template <typename T, typename Place>
HWY_INLINE Row<T> load_constant(const T* from, Place row) {
  return load(from, row);
}

// The row will be read soon; it need not be there. Into the second level of the cache: the first
// has a block to work on.
template <typename T, typename Place>
HWY_INLINE void fetch(const T* from, Place row) {
  constexpr std::int64_t line = 64 / sizeof(T);
  for (std::int64_t i = 0; i < row_lanes; i += line) {
    __builtin_prefetch(from + row.begin + i, 0, 2);
  }
}

// Single numbers of a payload.
template <typename T>
HWY_INLINE T load_one(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
HWY_INLINE void store_one(char* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

#define THINWIRE_ROW_OPERATOR(symbol, function)                               \
  template <typename T>                                                       \
  HWY_INLINE Row<T> operator symbol(const Row<T>& a, const Row<T>& b) {       \
    return row_of<T>([&](auto p) { return function(a.part[p], b.part[p]); }); \
  }
THINWIRE_ROW_OPERATOR(+, hn::Add)
THINWIRE_ROW_OPERATOR(-, hn::Sub)
THINWIRE_ROW_OPERATOR(*, hn::Mul)
THINWIRE_ROW_OPERATOR(/, hn::Div)
THINWIRE_ROW_OPERATOR(&, hn::And)
THINWIRE_ROW_OPERATOR(|, hn::Or)
THINWIRE_ROW_OPERATOR(^, hn::Xor)
#undef THINWIRE_ROW_OPERATOR

template <typename T>
HWY_INLINE Row<T> least_of(const Row<T>& a, const Row<T>& b) {
  return row_of<T>([&](auto p) { return hn::Min(a.part[p], b.part[p]); });
}
template <typename T>
HWY_INLINE Row<T> largest_of(const Row<T>& a, const Row<T>& b) {
  return row_of<T>([&](auto p) { return hn::Max(a.part[p], b.part[p]); });
}
template <typename T>
HWY_INLINE Row<T> magnitude(const Row<T>& a) {
  return row_of<T>([&](auto p) { return hn::Abs(a.part[p]); });
}
template <typename T>
HWY_INLINE Row<T> floor_of(const Row<T>& a) {
  return row_of<T>([&](auto p) { return hn::Floor(a.part[p]); });
}
template <int by, typename T>
HWY_INLINE Row<T> shift_left(const Row<T>& a) {
  return row_of<T>([&](auto p) { return hn::ShiftLeft<by>(a.part[p]); });
}
template <int by, typename T>
HWY_INLINE Row<T> shift_right(const Row<T>& a) {
  return row_of<T>([&](auto p) { return hn::ShiftRight<by>(a.part[p]); });
}

template <typename T>
HWY_INLINE Mask<T> less(const Row<T>& a, const Row<T>& b) {
  return mask_of<T>([&](auto p) { return hn::Lt(a.part[p], b.part[p]); });
}
template <typename T>
HWY_INLINE Mask<T> equal(const Row<T>& a, const Row<T>& b) {
  return mask_of<T>([&](auto p) { return hn::Eq(a.part[p], b.part[p]); });
}
template <typename T>
HWY_INLINE Row<T> select(const Mask<T>& mask, const Row<T>& yes, const Row<T>& no) {
  return row_of<T>([&](auto p) { return hn::IfThenElse(mask.part[p], yes.part[p], no.part[p]); });
}

// The lanes of a row that are there, as bits.
HWY_INLINE std::uint32_t lanes_there(WholeRow) {
  return ~std::uint32_t{0};
}
HWY_INLINE std::uint32_t lanes_there(LastRow row) {
  return (1u << row.n) - 1;
}

// One bit per lane, lane 0 the lowest.
template <typename T>
HWY_INLINE std::uint32_t ballot(const Mask<T>& mask, WholeRow) {
  std::uint32_t word = 0;
  each_part<T>([&](auto p) {
    constexpr std::size_t n = part_lanes<T>;
    std::conditional_t<(n > 8), std::uint16_t, std::uint8_t> bits = 0;
    static_assert(n <= 16);
    hn::StoreMaskBits(Tag<T>(), mask.part[p], reinterpret_cast<std::uint8_t*>(&bits));
    word |= static_cast<std::uint32_t>(bits & ((1u << n) - 1)) << (p * n);
  });
  return word;
}
template <typename T>
HWY_INLINE std::uint32_t ballot(const Mask<T>& mask, LastRow row) {
  return ballot(mask, WholeRow{0}) & lanes_there(row);
}
template <typename T>
HWY_INLINE Mask<T> from_ballot(std::uint32_t word) {
  return mask_of<T>([&](auto p) {
    const std::uint64_t bits = std::uint64_t{word} >> (p * part_lanes<T>);
    return hn::LoadMaskBits(Tag<T>(), reinterpret_cast<const std::uint8_t*>(&bits));
  });
}
// `otherwise` in the lanes that are not there.
template <typename T>
HWY_INLINE Row<T> there(WholeRow, const Row<T>& a, const Row<T>&) {
  return a;
}
template <typename T>
HWY_INLINE Row<T> there(LastRow row, const Row<T>& a, const Row<T>& otherwise) {
  return select(from_ballot<T>(lanes_there(row)), a, otherwise);
}
// The same answers for values of the type T.
template <typename T, typename U>
HWY_INLINE Mask<T> mask_for(const Mask<U>& mask) {
  return mask_of<T>([&](auto p) { return hn::RebindMask(Tag<T>(), mask.part[p]); });
}
HWY_INLINE int count_bits(std::uint32_t word) {
  return std::popcount(word);
}

// A row's bits in a payload, whole bytes of them.
HWY_INLINE void store_bits(char* to, WholeRow, std::uint32_t word) {
  store_one(to, word);
}
HWY_INLINE void store_bits(char* to, LastRow row, std::uint32_t word) {
  std::memcpy(to, &word, static_cast<std::size_t>((row.n + 7) / 8));
}
HWY_INLINE std::uint32_t load_bits(const char* from, WholeRow) {
  return load_one<std::uint32_t>(from);
}
HWY_INLINE std::uint32_t load_bits(const char* from, LastRow row) {
  std::uint32_t word = 0;
  std::memcpy(&word, from, static_cast<std::size_t>((row.n + 7) / 8));
  return word;
}

// Folds lane := fold(lane, lane + width) for width 16, 8, 4, 2, 1.
template <typename T, typename Fold>
HWY_INLINE T fold_row(const Row<T>& row, Fold fold) {
  HWY_ALIGN T lanes[row_lanes];
  spill(row, lanes);
  for (int width = row_lanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] = fold(lanes[lane], lanes[lane + width]);
  }
  return lanes[0];
}
template <typename T>
HWY_INLINE T sum_of_lanes(const Row<T>& row) {
  return fold_row(row, [](T a, T b) { return a + b; });
}
template <typename T>
HWY_INLINE T least_lane(const Row<T>& row) {
  return fold_row(row, [](T a, T b) { return b < a ? b : a; });
}
template <typename T>
HWY_INLINE T largest_lane(const Row<T>& row) {
  return fold_row(row, [](T a, T b) { return a < b ? b : a; });
}

template <typename T>
HWY_INLINE Row<BitsOf<T>> bits_of(const Row<T>& a) {
  return row_of<BitsOf<T>>([&](auto p) { return hn::BitCast(Tag<BitsOf<T>>(), a.part[p]); });
}
template <typename T>
HWY_INLINE Row<T> value_of_bits(const Row<BitsOf<T>>& a) {
  return row_of<T>([&](auto p) { return hn::BitCast(Tag<T>(), a.part[p]); });
}
HWY_INLINE Row<std::int32_t> as_signed(const Row<std::uint32_t>& a) {
  return row_of<std::int32_t>([&](auto p) { return hn::BitCast(Tag<std::int32_t>(), a.part[p]); });
}

#if HWY_TARGET == HWY_SCALAR
template <typename Narrow>
HWY_INLINE auto half_part(const Row<Narrow>& row, std::size_t p) {
  return row.part[p];
}
HWY_INLINE Row<float> to_float(const Row<double>& a) {
  // DemoteTo would make infinities finite here.
  return row_of<float>(
      [&](auto p) { return hn::Set(Tag<float>(), static_cast<float>(hn::GetLane(a.part[p]))); });
}
#else
// The half of a row's part p that makes part p of a row of twice the width.
template <typename Narrow>
HWY_INLINE auto half_part(const Row<Narrow>& row, std::size_t p) {
  const hn::Half<Tag<Narrow>> half;
  return p % 2 == 0 ? hn::LowerHalf(half, row.part[p / 2]) : hn::UpperHalf(half, row.part[p / 2]);
}
HWY_INLINE Row<float> to_float(const Row<double>& a) {
  return row_of<float>([&](auto p) {
    const hn::Half<Tag<float>> half;
    return hn::Combine(Tag<float>(), hn::DemoteTo(half, a.part[2 * p + 1]),
                       hn::DemoteTo(half, a.part[2 * p]));
  });
}
#endif
HWY_INLINE Row<float> to_float(const Row<float>& a) {
  return a;
}
// Exact.
template <typename T>
HWY_INLINE Row<T> from_float(const Row<float>& a) {
  if constexpr (sizeof(T) == 4) {
    return a;
  } else {
    return row_of<T>([&](auto p) { return hn::PromoteTo(Tag<T>(), half_part(a, p)); });
  }
}
// Whole numbers below 2^24 in magnitude, exact.
template <typename T>
HWY_INLINE Row<T> from_int(const Row<std::int32_t>& a) {
  return from_float<T>(
      row_of<float>([&](auto p) { return hn::ConvertTo(Tag<float>(), a.part[p]); }));
}

// a * b, and its upper half.
HWY_INLINE Row<std::uint32_t> multiply(const Row<std::uint32_t>& a, std::uint32_t b,
                                       Row<std::uint32_t>& upper) {
  const Tag<std::uint32_t> d32;
  return row_of<std::uint32_t>([&](auto p) {
    if constexpr (part_lanes<std::uint32_t> == 1) {
      const std::uint64_t product = std::uint64_t{hn::GetLane(a.part[p])} * b;
      upper.part[p] = hn::Set(d32, static_cast<std::uint32_t>(product >> 32));
      return hn::Set(d32, static_cast<std::uint32_t>(product));
    } else {
      const Tag<std::uint64_t> d64;
      const auto factor = hn::Set(d32, b);
      const auto even = hn::MulEven(a.part[p], factor);
      const auto odds = hn::BitCast(d32, hn::ShiftRight<32>(hn::BitCast(d64, a.part[p])));
      const auto odd = hn::MulEven(odds, factor);
      upper.part[p] =
          hn::OddEven(hn::BitCast(d32, odd), hn::BitCast(d32, hn::ShiftRight<32>(even)));
      return hn::OddEven(hn::BitCast(d32, hn::ShiftLeft<32>(odd)), hn::BitCast(d32, even));
    }
  });
}

THINWIRE_ROWS_END

#endif
