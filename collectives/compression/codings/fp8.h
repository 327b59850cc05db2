// 8 bits per value, floating: `fp8`.
//
// Values as OCP's E4M3FN: a sign, 4 bits of exponent (bias 7), 3 of fraction; no infinity, the
// largest is 448, a NaN is 0x7f. A block is divided by a scale of its own, the least power of two
// with max|x| <= 448 scale, and rounded to nearest with ties to even, down to the smallest denormal
// number, 2^-9. The scale is a power of two as nothing but E4M3's own rounding loses anything then:
// to divide and to multiply by it is exact, so that the error of a value is at most its sixteenth,
// or 2^-10 scale. One that maps the largest value to 448 would gain nothing, for the precision of a
// floating number does not depend on how large it is.
//
// Payload: the scale (T), then a byte per value. A scale below the smallest normal number is 0, and
// so are all bytes. A block with a NaN or an infinity has NaN for its scale, and zero bytes; one
// whose largest value rounds to 2^128 (2^1024), decodes to an infinity and is not finite either.
#ifndef THINWIRE_CODINGS_FP8_H
#define THINWIRE_CODINGS_FP8_H

#include "collectives/compression/kernels/format.h"

namespace thinwire {

struct Fp8 {
  std::int64_t block = 1024;  // values per scale

  static constexpr bool keeps_messages = false;
  std::int64_t block_size() const { return block; }
  Format format(std::int64_t) const { return {}; }
  template <typename T>
  static constexpr std::int64_t payload_bytes(const Format&, std::int64_t count) {
    return static_cast<std::int64_t>(sizeof(T)) + count;
  }
};

}  // namespace thinwire

#endif

#ifdef THINWIRE_CODING_WORDS
namespace thinwire {

template <>
struct Words<Fp8> : WordsByDefault<Fp8> {
  static constexpr std::array names = {"fp8"};
  static constexpr const char* help = "fp8[:block=N]";
  static constexpr auto& ways = every_way;
  static Fp8 read(ChoiceReader& spec) {
    return {spec.integer("block", Fp8().block, 32, largest_block)};
  }
  static std::string write(const Fp8& fp8) { return fmt::format("fp8:block={}", fp8.block); }
  static void check(const Fp8& fp8) {
    if (fp8.block < 32 || fp8.block > largest_block) {
      throw UsageError(
          fmt::format("compressor fp8: block is {}; give 32 to {}", fp8.block, largest_block));
    }
  }
  static std::string describe(const Fp8& fp8) {
    return fmt::format("fp8 values (e4m3), one scale per {}", fp8.block);
  }
  static Loss loss(const Fp8&) { return Loss::some; }
};

}  // namespace thinwire
#endif

#ifdef THINWIRE_CODING_BODIES
THINWIRE_ROWS_BEGIN

// Of a block whose largest magnitude has these bits.
template <typename T>
THINWIRE_BODY T scale_of_fp8(BitsOf<T> largest) {
  if (largest >= infinity_bits<T>) return not_finite<T>;
  constexpr BitsOf<T> one = BitsOf<T>{1} << (sizeof(T) == 4 ? 23 : 52);  // of the exponent
  // 448 is 1.75 * 2^8: what is above 1.75 of its own power of two takes the next one.
  const BitsOf<T> place = (largest + (one / 4 - 1)) / one - 8;
  if (place < 1) return 0;
  return largest_lane(value_of_bits<T>(fill<BitsOf<T>>(place * one)));
}

// To the nearest number of E4M3, ties to even, of values from 0 to 448: a sum with 2^23 (2^52) of
// its last place, which is an eighth of its power of two, rounds there.
template <typename T>
THINWIRE_BODY Row<T> round_to_e4m3(const Row<T>& x) {
  const Row<T> power = value_of_bits<T>(bits_of(x) & fill(infinity_bits<T>));
  const Row<T> large = largest_of(power, fill(static_cast<T>(0x1p-6))) *
                       fill(static_cast<T>(sizeof(T) == 4 ? 0x1p20 : 0x1p49));
  return (x + large) - large;
}

// Bytes of such numbers, without their signs.
THINWIRE_BODY Row<std::int32_t> to_e4m3(const Row<float>& x) {
  const Row<float> smallest = fill(0x1p-6f);  // normal one
  const Row<std::int32_t> bits = bits_of(x);
  const Row<std::int32_t> small = shift_right<20>(bits_of(x + smallest) - bits_of(smallest));
  const Row<std::int32_t> normal = shift_right<20>(bits) - fill<std::int32_t>(120 << 3);
  return select(less(bits, bits_of(smallest)), small, normal);
}

THINWIRE_BODY Row<float> from_e4m3(const Row<std::int32_t>& bytes) {
  const Row<std::int32_t> sign = shift_left<24>(bytes & fill<std::int32_t>(0x80));
  const Row<std::int32_t> size = bytes & fill<std::int32_t>(0x7f);
  const Row<std::int32_t> normal = shift_left<20>(size) + fill<std::int32_t>(120 << 23);
  const Row<std::int32_t> small = bits_of(from_int<float>(size) * fill(0x1p-9f));
  Row<std::int32_t> value = select(less(size, fill<std::int32_t>(8)), small, normal);
  value = select(equal(size, fill<std::int32_t>(0x7f)), fill<std::int32_t>(0x7fc00000), value);
  return value_of_bits<float>(sign | value);
}

template <typename T, typename Message>
THINWIRE_WHOLE_BODY void encode_fp8(const Task<T>& task, Message message) {
  Messages<T, Message> messages(message, task.count);
  Row<BitsOf<T>> largest = zeros<BitsOf<T>>();
  messages.first_pass(
      [&](auto, const Row<T>& m) { largest = largest_of(largest, magnitude_bits(m)); });
  const T scale = scale_of_fp8<T>(largest_lane(largest));
  once([&] { store_one(task.payload, scale); });
  char* const bytes = task.payload + sizeof(T);
  Energy<T> energy{task.energy};
  if (!(scale > 0)) {
    const Row<T> decoded = fill(scale);
    messages.next_pass([&](auto row, const Row<T>& m) {
      store_bytes(bytes, row, zeros<std::int32_t>());
      message.keep_unsent(row, m, decoded);
      energy.add(row, m, decoded);
    });
    energy.close();
    return;
  }
  const T inverse = 1 / scale;
  messages.next_pass([&](auto row, const Row<T>& m) {
    const Row<std::int32_t> signs =
        shift_right<24>(bits_of(to_float(m))) & fill<std::int32_t>(0x80);
    const Row<T> rounded = round_to_e4m3<T>(magnitude(m) * fill(inverse));
    const Row<std::int32_t> row_of_bytes = to_e4m3(to_float(rounded)) | signs;
    store_bytes(bytes, row, row_of_bytes);
    const Row<T> decoded = from_float<T>(from_e4m3(row_of_bytes)) * fill(scale);
    message.keep_unsent(row, m, decoded);
    energy.add(row, m, decoded);
  });
  energy.close();
}

template <typename T>
struct Fp8Reader {
  T scale;
  const char* bytes;
  THINWIRE_BODY Fp8Reader(const char* payload, const Format&)
      : scale(load_one<T>(payload)), bytes(payload + sizeof(T)) {}
  template <typename Place>
  THINWIRE_BODY Row<T> decoded(Place row) const {
    return from_float<T>(from_e4m3(load_bytes(bytes, row))) * fill(scale);
  }
};

template <>
struct Bodies<Fp8> : BodiesByRows<Fp8Reader> {
  template <typename T, typename Message>
  THINWIRE_BODY static void encode(const Task<T>& task, const Message& message) {
    encode_fp8(task, message);
  }
};

THINWIRE_ROWS_END
#endif
