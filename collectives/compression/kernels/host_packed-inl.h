// Rows of small whole numbers in payloads, on the host: 16 or 8 bits each, or words of their bits
// (format.h). Included once per target, as host_rows-inl.h is.
#if defined(THINWIRE_HOST_PACKED_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_HOST_PACKED_INL_H
#undef THINWIRE_HOST_PACKED_INL_H
#else
#define THINWIRE_HOST_PACKED_INL_H
#endif

#include "collectives/compression/kernels/host_blocks-inl.h"

THINWIRE_ROWS_BEGIN

// 16 bits per lane.
HWY_INLINE Row<std::int32_t> load_halves(const char* from, WholeRow row) {
  const auto* halves = reinterpret_cast<const std::uint16_t*>(from + 2 * row.begin);
  return row_of<std::int32_t>([&](auto p) {
    const hn::Rebind<std::uint16_t, Tag<std::int32_t>> d16;
    return hn::PromoteTo(Tag<std::int32_t>(),
                         hn::LoadU(d16, halves + p * part_lanes<std::int32_t>));
  });
}
HWY_INLINE Row<std::int32_t> load_halves(const char* from, LastRow row) {
  char halves[2 * row_lanes] = {};
  std::memcpy(halves, from + 2 * row.begin, static_cast<std::size_t>(row.n) * 2);
  return load_halves(halves, WholeRow{0});
}
HWY_INLINE void store_halves(char* to, WholeRow row, const Row<std::int32_t>& x) {
  auto* halves = reinterpret_cast<std::uint16_t*>(to + 2 * row.begin);
  each_part<std::int32_t>([&](auto p) {
    const hn::Rebind<std::uint16_t, Tag<std::int32_t>> d16;
    hn::StoreU(hn::DemoteTo(d16, x.part[p]), d16, halves + p * part_lanes<std::int32_t>);
  });
}
HWY_INLINE void store_halves(char* to, LastRow row, const Row<std::int32_t>& x) {
  char halves[2 * row_lanes];
  store_halves(halves, WholeRow{0}, x);
  std::memcpy(to + 2 * row.begin, halves, static_cast<std::size_t>(row.n) * 2);
}

// 8 bits per lane.
HWY_INLINE Row<std::int32_t> load_bytes(const char* from, WholeRow row) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from + row.begin);
  return row_of<std::int32_t>([&](auto p) {
    const hn::Rebind<std::uint8_t, Tag<std::int32_t>> d8;
    return hn::PromoteTo(Tag<std::int32_t>(), hn::LoadU(d8, bytes + p * part_lanes<std::int32_t>));
  });
}
HWY_INLINE Row<std::int32_t> load_bytes(const char* from, LastRow row) {
  char bytes[row_lanes] = {};
  std::memcpy(bytes, from + row.begin, static_cast<std::size_t>(row.n));
  return load_bytes(bytes, WholeRow{0});
}
HWY_INLINE void store_bytes(char* to, WholeRow row, const Row<std::int32_t>& x) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(to + row.begin);
  each_part<std::int32_t>([&](auto p) {
    const hn::Rebind<std::uint8_t, Tag<std::int32_t>> d8;
    hn::StoreU(hn::DemoteTo(d8, x.part[p]), d8, bytes + p * part_lanes<std::int32_t>);
  });
}
HWY_INLINE void store_bytes(char* to, LastRow row, const Row<std::int32_t>& x) {
  char bytes[row_lanes];
  store_bytes(bytes, WholeRow{0}, x);
  std::memcpy(to + row.begin, bytes, static_cast<std::size_t>(row.n));
}

// Bytes of each of a row's words.
template <typename Place>
HWY_INLINE std::int64_t plane_bytes(Place row) {
  return (row.n + 7) / 8;
}

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

// The lowest bytes of a row's lanes, from part `first` on.
template <typename T, std::size_t first, std::size_t count>
HWY_INLINE auto lowest_bytes(const Row<T>& row) {
  if constexpr (count == 1) {
    const hn::Rebind<std::make_unsigned_t<T>, Tag<T>> wide;
    return hn::TruncateTo(hn::Rebind<std::uint8_t, Tag<T>>(), hn::BitCast(wide, row.part[first]));
  } else {
    const hn::FixedTag<std::uint8_t, count * part_lanes<T>> bytes;
    return hn::Combine(bytes, lowest_bytes<T, first + count / 2, count / 2>(row),
                       lowest_bytes<T, first, count / 2>(row));
  }
}

// The same of whole numbers below 256.
HWY_INLINE auto bytes_of(const Row<std::int32_t>& row) {
  // Packing interleaves groups of four bytes, which are put in order at the end.
  const hn::FixedTag<std::uint8_t, row_lanes> d8;
  const hn::Repartition<std::uint32_t, decltype(d8)> d32;
  const hn::Repartition<std::int16_t, Tag<std::int32_t>> d16;
#if HWY_TARGET == HWY_AVX3
  const auto packed = hn::DemoteTo(d8, hn::ReorderDemote2To(d16, row.part[0], row.part[1]));
  HWY_ALIGN static constexpr std::uint32_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
#else
  const hn::Half<decltype(d8)> half;
  const auto lower = hn::DemoteTo(half, hn::ReorderDemote2To(d16, row.part[0], row.part[1]));
  const auto upper = hn::DemoteTo(half, hn::ReorderDemote2To(d16, row.part[2], row.part[3]));
  const auto packed = hn::Combine(d8, upper, lower);
  HWY_ALIGN static constexpr std::uint32_t order[8] = {0, 2, 1, 3, 4, 6, 5, 7};
#endif
  return hn::BitCast(
      d8, hn::TableLookupLanes(hn::BitCast(d32, packed), hn::SetTableIndices(d32, order)));
}
HWY_INLINE auto bytes_of(const Row<std::int64_t>& row) {
  return lowest_bytes<std::int64_t, 0, parts<std::int64_t>>(row);
}

// The bits of whole numbers below 256, one word for each of the lowest `bits`.
template <typename T, typename Place>
HWY_INLINE void store_planes(char* to, Place row, const Row<T>& levels, int bits) {
  // In the lowest bits of the sum, as this is so large that one is its last place.
  const T place = static_cast<T>(sizeof(T) == 4 ? 0x1p23 : 0x1p52);
  const Row<BitsOf<T>> bits_of_place = bits_of(fill(place));
  const hn::FixedTag<std::uint8_t, row_lanes> d8;
  auto bytes = bytes_of(bits_of(levels + fill(place)) ^ bits_of_place);
  // The highest bit of a byte is the next to go.
  bytes = hn::BitCast(
      d8, hn::ShiftLeftSame(hn::BitCast(hn::Repartition<std::uint16_t, decltype(d8)>(), bytes),
                            8 - bits));
  for (int plane = bits - 1; plane >= 0; --plane) {
    std::uint32_t word = 0;
    hn::StoreMaskBits(d8, hn::MaskFromVec(bytes), reinterpret_cast<std::uint8_t*>(&word));
    word &= lanes_there(row);
    store_bits(to + plane * plane_bytes(row), row, word);
    bytes = hn::Add(bytes, bytes);
  }
}

template <typename T, typename Place>
HWY_INLINE Row<T> load_planes(const char* from, Place row, int bits) {
  const hn::FixedTag<std::uint8_t, row_lanes> d8;
  const auto one = hn::Set(d8, 1);
  auto bytes = hn::Zero(d8);
  for (int plane = bits - 1; plane >= 0; --plane) {
    const std::uint64_t word = load_bits(from + plane * plane_bytes(row), row);
    const auto mask = hn::LoadMaskBits(d8, reinterpret_cast<const std::uint8_t*>(&word));
    bytes = hn::Add(hn::Add(bytes, bytes), hn::IfThenElseZero(mask, one));
  }
  HWY_ALIGN std::uint8_t levels[row_lanes];
  hn::Store(bytes, d8, levels);
  return from_int<T>(row_of<std::int32_t>([&](auto p) {
    const hn::Rebind<std::uint8_t, Tag<std::int32_t>> part;
    return hn::PromoteTo(Tag<std::int32_t>(),
                         hn::LoadU(part, levels + p * part_lanes<std::int32_t>));
  }));
}

#else

template <typename T, typename Place>
HWY_INLINE void store_planes(char* to, Place row, const Row<T>& levels, int bits) {
  HWY_ALIGN T lanes[row_lanes];
  spill(levels, lanes);
  for (int plane = 0; plane < bits; ++plane) {
    std::uint32_t word = 0;
    for (int lane = 0; lane < row.n; ++lane) {
      word |= (static_cast<std::uint32_t>(lanes[lane]) >> plane & 1) << lane;
    }
    store_bits(to + plane * plane_bytes(row), row, word);
  }
}

template <typename T, typename Place>
HWY_INLINE Row<T> load_planes(const char* from, Place row, int bits) {
  std::uint32_t levels[row_lanes] = {};
  for (int plane = 0; plane < bits; ++plane) {
    const std::uint32_t word = load_bits(from + plane * plane_bytes(row), row);
    for (int lane = 0; lane < row.n; ++lane) levels[lane] |= (word >> lane & 1) << plane;
  }
  HWY_ALIGN T lanes[row_lanes];
  for (int lane = 0; lane < row_lanes; ++lane) lanes[lane] = static_cast<T>(levels[lane]);
  return row_of<T>([&](auto p) { return hn::Load(Tag<T>(), lanes + p * part_lanes<T>); });
}

#endif

THINWIRE_ROWS_END

#endif
