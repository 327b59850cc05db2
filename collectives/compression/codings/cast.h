// 16 bits per value: `fp16` and `bf16`.
//
// Values as IEEE half or bfloat16, rounded to nearest with ties to even; a double becomes a float
// first. Finite values beyond the largest finite one become it, denormals are kept, an infinity
// stays, a NaN becomes the positive quiet one (0x7e00, 0x7fc0). A value decodes on its own: the
// block only says where tensors may be cut.
//
// Payload: two bytes per value.
#ifndef THINWIRE_CODINGS_CAST_H
#define THINWIRE_CODINGS_CAST_H

#include "collectives/compression/kernels/format.h"

namespace thinwire {

enum class Half : std::uint8_t { fp16, bf16 };

struct Cast {
  Half half = Half::bf16;

  static constexpr bool keeps_messages = false;
  std::int64_t block_size() const { return 1024; }
  // The variant is the half.
  Format format(std::int64_t) const {
    Format format;
    format.variant = static_cast<std::uint8_t>(half);
    return format;
  }
  static constexpr Half half_of(const Format& format) { return static_cast<Half>(format.variant); }
  template <typename T>
  static constexpr std::int64_t payload_bytes(const Format&, std::int64_t count) {
    return count * 2;
  }
};

}  // namespace thinwire

#endif

#ifdef THINWIRE_CODING_WORDS
namespace thinwire {

template <>
struct Words<Cast> : WordsByDefault<Cast> {
  static constexpr std::array names = {"fp16", "bf16"};
  static constexpr const char* help = "fp16 | bf16";
  static constexpr std::array ways = {
      Way{FeedbackKind::error_feedback, ExchangeKind::two_stage},
      Way{FeedbackKind::none, ExchangeKind::two_stage},
  };
  static Cast read(ChoiceReader& spec) { return {spec.name() == "fp16" ? Half::fp16 : Half::bf16}; }
  static std::string write(const Cast& cast) { return cast.half == Half::fp16 ? "fp16" : "bf16"; }
  static std::string describe(const Cast& cast) { return write(cast) + " values"; }
  static std::optional<Clamp> clamp(const Cast& cast) {
    if (cast.half != Half::fp16) return std::nullopt;
    return Clamp{65504, "fp16", "--compressor bf16"};
  }
  static Loss loss(const Cast&) { return Loss::little; }
};

}  // namespace thinwire
#endif

#ifdef THINWIRE_CODING_BODIES
THINWIRE_ROWS_BEGIN

// To nearest, ties to even; finite values stay finite, and a NaN has one form.
template <Half half>
THINWIRE_BODY Row<std::int32_t> to_half(const Row<float>& x) {
  using Ints = Row<std::int32_t>;
  const Ints bits = bits_of(x);
  const Ints size = bits & fill<std::int32_t>(0x7fffffff);
  const Ints sign = shift_right<16>(bits) & fill<std::int32_t>(0x8000);
  const Ints one = fill<std::int32_t>(1);
  const auto is_finite = less(size, fill<std::int32_t>(0x7f800000));
  const auto is_nan = less(fill<std::int32_t>(0x7f800000), size);
  Ints rounded;
  Ints above;
  if constexpr (half == Half::bf16) {
    rounded = shift_right<16>(size + fill<std::int32_t>(0x7fff) + (shift_right<16>(size) & one));
    rounded = least_of(rounded, fill<std::int32_t>(0x7f7f));
    above = select(is_nan, fill<std::int32_t>(0x7fc0), sign | fill<std::int32_t>(0x7f80));
  } else {
    rounded = shift_right<13>(size + fill<std::int32_t>(0xfff) + (shift_right<13>(size) & one)) -
              fill<std::int32_t>(112 << 10);
    rounded = least_of(rounded, fill<std::int32_t>(0x7bff));
    // The last place of numbers from 1/2 to 1 is 2^-24, that of fp16's below its normal ones.
    const Ints small = bits_of(value_of_bits<float>(size) + fill(0.5f)) - bits_of(fill(0.5f));
    rounded = select(less(size, fill<std::int32_t>(113 << 23)), small, rounded);
    above = select(is_nan, fill<std::int32_t>(0x7e00), sign | fill<std::int32_t>(0x7c00));
  }
  return select(is_finite, sign | rounded, above);
}

template <Half half>
THINWIRE_BODY Row<float> from_half(const Row<std::int32_t>& bits) {
  using Ints = Row<std::int32_t>;
  if constexpr (half == Half::bf16) {
    return value_of_bits<float>(shift_left<16>(bits));
  } else {
    const Ints sign = shift_left<16>(bits & fill<std::int32_t>(0x8000));
    const Ints size = bits & fill<std::int32_t>(0x7fff);
    const Ints moved_up = shift_left<13>(size);
    const Ints normal = moved_up + fill<std::int32_t>(112 << 23);
    const Ints above = moved_up + fill<std::int32_t>(224 << 23);
    const Ints small = bits_of(from_int<float>(size) * fill(0x1p-24f));
    Ints value = select(less(size, fill<std::int32_t>(0x400)), small, normal);
    value = select(less(size, fill<std::int32_t>(0x7c00)), value, above);
    return value_of_bits<float>(sign | value);
  }
}

// A float of any value; finite ones stay finite.
THINWIRE_BODY Row<float> to_finite_float(const Row<float>& x) {
  return x;
}
THINWIRE_BODY Row<float> to_finite_float(const Row<double>& x) {
  const auto largest = static_cast<double>(std::numeric_limits<float>::max());
  const Row<double> clamped = largest_of(least_of(x, fill(largest)), fill(-largest));
  const auto is_finite = less(magnitude_bits(x), fill(infinity_bits<double>));
  return to_float(select(mask_for<double>(is_finite), clamped, x));
}

template <Half half, typename T, typename Message>
THINWIRE_WHOLE_BODY void encode_cast(const Task<T>& task, Message message) {
  Energy<T> energy{task.energy};
  Messages<T, Message> messages(message, task.count);
  messages.in_one_pass([&](auto row, const Row<T>& m) {
    const Row<std::int32_t> bits = to_half<half>(to_finite_float(m));
    store_halves(task.payload, row, bits);
    const Row<T> decoded = from_float<T>(from_half<half>(bits));
    message.keep_unsent(row, m, decoded);
    energy.add(row, m, decoded);
  });
  energy.close();
}

template <Half half>
struct CastReaderOf {
  template <typename T>
  struct Reader {
    const char* halves;
    THINWIRE_BODY Reader(const char* payload, const Format&) : halves(payload) {}
    template <typename Place>
    THINWIRE_BODY Row<T> decoded(Place row) const {
      return from_float<T>(from_half<half>(load_halves(halves, row)));
    }
  };
};

template <>
struct Bodies<Cast> {
  template <typename T, typename Message>
  THINWIRE_BODY static void encode(const Task<T>& task, const Message& message) {
    return Cast::half_of(task.format) == Half::bf16 ? encode_cast<Half::bf16>(task, message)
                                                    : encode_cast<Half::fp16>(task, message);
  }
  template <typename T, typename Use>
  THINWIRE_BODY static void each_mean(const Block& block, const char* payload, std::int64_t stride,
                                      std::int32_t ranks, Use use) {
    if (Cast::half_of(block.format) == Half::bf16) {
      return each_mean_of_rows<CastReaderOf<Half::bf16>::template Reader, T>(block, payload, stride,
                                                                             ranks, use);
    }
    return each_mean_of_rows<CastReaderOf<Half::fp16>::template Reader, T>(block, payload, stride,
                                                                           ranks, use);
  }
  template <typename T>
  THINWIRE_BODY static bool within(const Block& block, const char* payload, T limit) {
    return Cast::half_of(block.format) == Half::bf16
               ? rows_within<CastReaderOf<Half::bf16>::template Reader>(block, payload, limit)
               : rows_within<CastReaderOf<Half::fp16>::template Reader>(block, payload, limit);
  }
};

THINWIRE_ROWS_END
#endif
