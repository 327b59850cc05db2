// How consecutive elements of one slice are coded together, and the payloads that come of it.
//
// T is the type of the values, float or double. Payloads are packed: nothing in them is aligned.
// Every byte of a payload is determined, unused bits are zero.
//
//   raw       count values
//   sign      the scale (T), one bit per value, 1 for x >= 0. Values decode to +scale or -scale.
//             The scale is mean|x| (l1) or sqrt(mean x^2) (rms).
//   quantize  max_min: the least value (T) and the unit (T) = (largest - least) / (2^bits - 1),
//             then levels; level l decodes to least + unit * l.
//             symmetric: the unit (T) = max|x| / m with m = 2^(bits - 1) - 1, then levels plus m;
//             level l decodes to unit * (l - m). Not with 1 bit.
//             level = floor(v + r), at most the highest, where v = (x - least) * (1 / unit) or
//             v = x * (1 / unit) + m, and r = 1/2 (nearest) or uniform in [0, 1) (stochastic).
//             codec/quantize.h has the order of operations.
//   cast      2 bytes per value, nearest with ties to even (a double becomes a float first). Finite
//             values beyond the largest finite one become it.
//   top_k     the number of kept values (uint32, at most `kept`), room for `kept` values (T) in the
//             order of their indices, room for `kept` indices into the block of index_bits(block)
//             bits each. `exact`: the largest |x|, of equal ones those with the lowest index.
//             `threshold`: all with |x| >= t, for a t found by bisection at which at least .95
//             `kept` but no more than `kept` pass; where there is no such t, for many |x| are
//             equal, what `exact` keeps. Zeros are never kept. codec/top_k.h has the bisection.
//   held      nothing: a frozen slice
//
// Bits of signs and levels are packed in rows of 32 values: for signs one word of 32 bits, value i
// of the row in bit i; for levels `bits` words, word p holding bit p of each value's level. The
// last row's words are cut to whole bytes, (n + 7) / 8 each. Indices are a stream of bits, the
// first in the lowest bits of the first byte.
//
// A scale, unit or range below the smallest normal number of T counts as zero, and the block
// decodes to zeros (under max_min: to the least value, which is then also zeroed if it is no normal
// number). -0 in a scale, unit or least value becomes +0. A block with a NaN or an infinity, or
// whose scale overflows, has NaN for its scale, unit and least value, or 0xffffffff for its number
// of kept values, and decodes to NaN; so does a block of top_k whose numbers make no sense.
#pragma once

#include <cstdint>
#include <limits>

namespace thinwire {

enum class Coding : std::int32_t { raw, sign, quantize, cast, top_k, held };
enum class SignScale : std::uint8_t { l1, rms };
enum class Grid : std::uint8_t { max_min, symmetric };
enum class Rounding : std::uint8_t { nearest, stochastic };
enum class Half : std::uint8_t { fp16, bf16 };
enum class Selection : std::uint8_t { threshold, exact };

// How one block travels; each coding reads the fields that its line above names.
struct Format {
  Coding coding = Coding::raw;
  SignScale scale = SignScale::l1;
  Grid grid = Grid::max_min;
  Rounding rounding = Rounding::nearest;
  Half half = Half::bf16;
  Selection selection = Selection::threshold;
  std::uint8_t bits = 0;  // quantize: 1 to 8
  std::int32_t kept = 0;  // top_k: 1 to the block's number of values
};

// Bits that tell the place of one of `count` values.
constexpr int index_bits(std::int64_t count) {
  int bits = 1;
  while ((std::int64_t{1} << bits) < count) ++bits;
  return bits;
}

// The largest magnitude that each of `ranks` values may have for their sum to be finite whatever is
// rounded on the way; of one value, the largest finite one.
template <typename T>
constexpr T largest_addend(std::int64_t ranks) {
  constexpr T largest = std::numeric_limits<T>::max();
  return ranks == 1 ? largest : largest / static_cast<T>(2 * ranks);
}

// Bytes of the payload of `count` values.
template <typename T>
constexpr std::int64_t payload_bytes(const Format& format, std::int64_t count) {
  constexpr auto width = static_cast<std::int64_t>(sizeof(T));
  if (count == 0) return 0;
  // Whole rows of 32 values, and the bytes of the last one.
  const std::int64_t plane = count / 32 * 4 + (count % 32 + 7) / 8;
  switch (format.coding) {
    case Coding::raw:
      return count * width;
    case Coding::sign:
      return width + plane;
    case Coding::quantize:
      return (format.grid == Grid::max_min ? 2 : 1) * width + format.bits * plane;
    case Coding::cast:
      return count * 2;
    case Coding::top_k:
      return 4 + format.kept * width + (format.kept * std::int64_t{index_bits(count)} + 7) / 8;
    case Coding::held:
      return 0;
  }
  return 0;
}

}  // namespace thinwire
