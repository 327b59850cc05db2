// One bit per value and one scale per block: `sign`.
//
// C(x) = scale sign(x), with sign(0) = +1. With rho = |x|_1 / (sqrt(count) |x|_2)
//   l1   the scale is mean|x|: contractive, |x - C(x)|^2 = (1 - rho^2) |x|^2.
//   rms  the scale is sqrt(mean x^2), that of DeepSpeed's 1-bit Adam: |C(x)| = |x| and
//        |x - C(x)|^2 = 2 (1 - rho) |x|^2, which is more than |x|^2 for rho < 1/2. Squares that
//        are not normal numbers lose bits.
//
// Payload: the scale (T), then a bit per value, 1 for x >= 0. The block decodes to +scale and
// -scale. The sum of |x| or x^2 is formed in 32 lanes (kernels.h), so that its bits do not depend
// on the machine. Only the block's own values enter its scale.
#ifndef THINWIRE_CODINGS_SIGN_H
#define THINWIRE_CODINGS_SIGN_H

#include "collectives/compression/kernels/format.h"

namespace thinwire {

enum class SignScale : std::uint8_t { l1, rms };

struct Sign {
  std::int64_t block = 1024;  // values per scale, a multiple of 8, at most 2^30
  SignScale scale = SignScale::l1;

  // The scale and the message's signs are all that there is to know of what was sent.
  static constexpr bool keeps_messages = true;
  std::int64_t block_size() const { return block; }
  // The variant is the scale.
  Format format(std::int64_t) const {
    Format format;
    format.variant = static_cast<std::uint8_t>(scale);
    return format;
  }
  static constexpr SignScale scale_of(const Format& format) {
    return static_cast<SignScale>(format.variant);
  }
  template <typename T>
  static constexpr std::int64_t payload_bytes(const Format&, std::int64_t count) {
    return static_cast<std::int64_t>(sizeof(T)) + bytes_of_bits(count);
  }
};

}  // namespace thinwire

#endif

#ifdef THINWIRE_CODING_WORDS
namespace thinwire {

template <>
struct Words<Sign> : WordsByDefault<Sign> {
  static constexpr std::array names = {"sign"};
  static constexpr const char* help = "sign[:block=N,scale=l1|rms]";
  static constexpr auto& ways = every_way;
  static constexpr Word<SignScale> scales[] = {{"l1", SignScale::l1}, {"rms", SignScale::rms}};
  static constexpr std::int64_t largest = std::int64_t{1} << 30;

  static Sign read(ChoiceReader& spec) {
    Sign sign;
    sign.block = spec.integer("block", sign.block, 8, largest);
    sign.scale = choose(spec, "scale", scales);
    return sign;
  }
  static std::string write(const Sign& sign) {
    return fmt::format("sign:block={},scale={}", sign.block, word_of(sign.scale, scales));
  }
  static void check(const Sign& sign) {
    if (sign.block < 8 || sign.block % 8 != 0 || sign.block > largest) {
      throw UsageError(
          fmt::format("compressor sign: block is {}; give a multiple of 8 from 8 on, at most {}",
                      sign.block, largest));
    }
  }
  static std::string describe(const Sign& sign) {
    return fmt::format("sign, one {}scale per {} values",
                       sign.scale == SignScale::rms ? "rms " : "", sign.block);
  }
};

}  // namespace thinwire
#endif

#ifdef THINWIRE_CODING_BODIES
THINWIRE_ROWS_BEGIN

template <SignScale kind, typename T>
THINWIRE_BODY Row<T> share_of_scale(const Row<T>& m) {
  if constexpr (kind == SignScale::l1) {
    return magnitude(m);
  } else {
    return m * m;
  }
}

template <SignScale kind, typename T>
THINWIRE_BODY T scale_of(const Row<T>& shares, std::int64_t count) {
  T scale = sum_of_lanes(shares) / static_cast<T>(count);
  if constexpr (kind == SignScale::rms) scale = square_root(scale);
  if (!finite(scale)) return not_finite<T>;
  return scale < smallest_normal<T> ? 0 : scale;
}

// In one pass: what is not sent is formed in the next step from the message, which stays.
template <SignScale kind, typename T>
THINWIRE_WHOLE_BODY void encode_sign(const Task<T>& task, KeptMessage<T> message) {
  Messages<T, KeptMessage<T>> messages(message, task.count);
  Row<T> shares = zeros<T>();
  BitsWriter bits(task.payload + sizeof(T));
  messages.first_pass([&](auto row, const Row<T>& m) {
    shares = shares + share_of_scale<kind>(m);
    bits.append(row, ~ballot(less(m, zeros<T>()), row) & lanes_there(row));
  });
  const T scale = scale_of<kind>(shares, task.count);
  once([&] {
    store_one(task.payload, scale);
    *message.sent_next = scale;
  });
}

template <SignScale kind, typename T, typename Message>
THINWIRE_WHOLE_BODY void encode_sign(const Task<T>& task, Message message) {
  Messages<T, Message> messages(message, task.count);
  Row<T> shares = zeros<T>();
  messages.first_pass([&](auto, const Row<T>& m) { shares = shares + share_of_scale<kind>(m); });
  const T scale = scale_of<kind>(shares, task.count);
  once([&] { store_one(task.payload, scale); });
  BitsWriter bits(task.payload + sizeof(T));
  const Row<T> plus = fill<T>(scale);
  const Row<T> minus = fill<T>(-scale);
  Energy<T> energy{task.energy};
  messages.next_pass([&](auto row, const Row<T>& m) {
    const Mask<T> negative = less(m, zeros<T>());
    bits.append(row, ~ballot(negative, row) & lanes_there(row));
    const Row<T> decoded = select(negative, minus, plus);
    message.keep_unsent(row, m, decoded);
    energy.add(row, m, decoded);
  });
  energy.close();
}

template <typename T>
struct SignReader {
  T scale;
  const char* bits;
  THINWIRE_BODY SignReader(const char* payload, const Format&)
      : scale(load_one<T>(payload)), bits(payload + sizeof(T)) {}
  template <typename Place>
  THINWIRE_BODY Row<T> decoded(Place row) const {
    const std::uint32_t word = load_bits(bits + row.begin / 8, row);
    return select(from_ballot<T>(word), fill(scale), fill(-scale));
  }
};

template <>
struct Bodies<Sign> : BodiesByRows<SignReader> {
  template <typename T, typename Message>
  THINWIRE_BODY static void encode(const Task<T>& task, const Message& message) {
    return Sign::scale_of(task.format) == SignScale::l1
               ? encode_sign<SignScale::l1>(task, message)
               : encode_sign<SignScale::rms>(task, message);
  }
  template <typename T>
  THINWIRE_BODY static bool within(const Block&, const char* payload, T limit) {
    return is_within(load_one<T>(payload), limit);
  }
};

THINWIRE_ROWS_END
#endif
