// What the codings' bodies (codings/) are made of, beside rows and messages: single numbers, sums,
// and a payload that is read row by row. Included once per target, as bodies-inl.h is.
#if defined(THINWIRE_CODING_BODIES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_CODING_BODIES_INL_H
#undef THINWIRE_CODING_BODIES_INL_H
#else
#define THINWIRE_CODING_BODIES_INL_H
#endif

#include "collectives/compression/kernels/messages-inl.h"

THINWIRE_ROWS_BEGIN

// A device may use constants, but not call the host's functions that make them.
template <typename T>
constexpr T smallest_normal = std::numeric_limits<T>::min();
template <typename T>
constexpr T infinity = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T not_finite = std::numeric_limits<T>::quiet_NaN();
template <typename T>
constexpr BitsOf<T> infinity_bits = static_cast<BitsOf<T>>(sizeof(T) == 4 ? 0x7f800000
                                                                          : 0x7ff0000000000000);

template <typename T>
THINWIRE_BODY bool finite(T x) {
  return x - x == 0;
}
template <typename T>
THINWIRE_BODY Row<BitsOf<T>> magnitude_bits(const Row<T>& a) {
  return bits_of(magnitude(a));
}

// Whether x is no larger than the limit; not of a NaN.
template <typename T>
THINWIRE_BODY bool is_within(T x, T limit) {
  return x <= limit && -x <= limit;
}

// Sums of m^2 and of (m - d)^2, where somebody asks for them: `to` is not null.
template <typename T>
struct Energy {
  T* to;
  Row<T> message = zeros<T>();
  Row<T> left = zeros<T>();
  template <typename Place>
  THINWIRE_BODY void add(Place row, const Row<T>& m, const Row<T>& decoded) {
    if (to == nullptr) return;
    message = message + m * m;
    const Row<T> rest = there(row, m - decoded, zeros<T>());
    left = left + rest * rest;
  }
  THINWIRE_BODY void close() {
    if (to == nullptr) return;
    const T sum = sum_of_lanes(message);
    const T rest = sum_of_lanes(left);
    once([&] {
      to[0] = sum;
      to[1] = rest;
    });
  }
};

// What a block's coding needs beside its values.
template <typename T>
struct Task {
  Format format;
  std::int64_t count;
  char* payload;
  std::uint64_t rounding_key;
  std::int64_t draws_begin;  // of the block in its bucket
  T* energy;
  Scratch* scratch;
};

// use(row, mean) for every row; `payload` is the first rank's of the block.
template <template <typename> class Reader, typename T, typename Use>
THINWIRE_BODY void each_mean_of_rows(const Block& block, const char* payload, std::int64_t stride,
                                     std::int32_t ranks, Use use) {
  // x / 1 is x.
  const Row<T> divisor = fill(static_cast<T>(ranks));
  if constexpr (readers_kept == 2) {
    const Reader<T> first(payload, block.format);
    if (ranks == 1) {
      rows(block.count, [&](auto row) { use(row, zeros<T>() + first.decoded(row)); });
      return;
    }
    if (ranks == 2) {
      const Reader<T> second(payload + stride, block.format);
      rows(block.count, [&](auto row) {
        use(row, ((zeros<T>() + first.decoded(row)) + second.decoded(row)) / divisor);
      });
      return;
    }
  }
  const std::int64_t summed = rows_of_sums<T>(
      block.count, ranks,
      [&](std::int32_t rank) { return Reader<T>(payload + rank * stride, block.format); },
      [&](auto row, const Row<T>& sum) { use(row, ranks == 1 ? sum : sum / divisor); });
  rows(block.count - summed, [&](auto rest) {
    const auto row = moved(rest, summed);
    Row<T> sum = zeros<T>();
    for (std::int32_t rank = 0; rank < ranks; ++rank) {
      sum = sum + Reader<T>(payload + rank * stride, block.format).decoded(row);
    }
    use(row, sum / divisor);
  });
}

// Whether all that the payload decodes to is within the limit.
template <template <typename> class Reader, typename T>
THINWIRE_BODY bool rows_within(const Block& block, const char* payload, T limit) {
  const Reader<T> reader(payload, block.format);
  // Bits, as the larger of a number and a NaN may be the number.
  Row<BitsOf<T>> largest = zeros<BitsOf<T>>();
  rows(block.count,
       [&](auto row) { largest = largest_of(largest, magnitude_bits(reader.decoded(row))); });
  return largest_lane(largest) <= largest_lane(bits_of(fill(limit)));
}

// How a coding writes and reads a block; its own file has the definition, with
//   encode(task, message)           payload := code(m), and message.keep_unsent for every row
//   each_mean<T>(block, payload, stride, ranks, use)
//                                   use(row, mean) for every row; `payload` is the block's from the
//                                   first rank
//   within(block, payload, limit)   whether all that the payload decodes to is within the limit
// BodiesByRows has the last two, of a Reader that decodes row by row.
template <typename C>
struct Bodies;

template <template <typename> class Reader>
struct BodiesByRows {
  template <typename T, typename Use>
  THINWIRE_BODY static void each_mean(const Block& block, const char* payload, std::int64_t stride,
                                      std::int32_t ranks, Use use) {
    each_mean_of_rows<Reader, T>(block, payload, stride, ranks, use);
  }
  template <typename T>
  THINWIRE_BODY static bool within(const Block& block, const char* payload, T limit) {
    return rows_within<Reader>(block, payload, limit);
  }
};

THINWIRE_ROWS_END

#endif
