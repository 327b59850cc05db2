// How consecutive elements of one slice are coded together: what all codings share. Each coding's
// own file (codings/) says what its payloads look like.
//
// T is the type of the values, float or double. Payloads are packed: nothing in them is aligned.
// Every byte of a payload is determined, unused bits are zero.
//
// Where values have a few bits each, bits are packed in rows of 32 values: for one bit per value a
// word of 32 bits, value i of the row in bit i; for several bits as many words, word p holding bit
// p of each value. The last row's words are cut to whole bytes, (n + 7) / 8 each.
//
// A scale below the smallest normal number of T counts as zero, and the block decodes to zeros. -0
// in a scale becomes +0. A block with a NaN or an infinity, or whose scale overflows, says so in
// its payload and decodes to NaN.
#pragma once

#include <cstdint>
#include <limits>

namespace thinwire {

// Which coding: its place in the list of codings/list.h, which begins with raw values.
enum class Coding : std::uint8_t {
  raw = 0,
  held = 0xff,  // nothing is sent of the block: its slice is frozen
};

// How one block travels. What the last three fields mean each coding says; 0 if it has no use for
// them.
struct Format {
  Coding coding = Coding::raw;
  std::uint8_t variant = 0;
  std::uint8_t bits = 0;     // per value
  std::int32_t entries = 0;  // that the payload has room for
};

// Values of the largest block that there may be: their number has 32 bits, and lanes of a sum
// should not grow too long.
constexpr std::int64_t largest_block = std::int64_t{1} << 24;

// Bytes of one bit per value of `count` values.
constexpr std::int64_t bytes_of_bits(std::int64_t count) {
  return count / 32 * 4 + (count % 32 + 7) / 8;
}

// The largest magnitude that each of `ranks` values may have for their sum to be finite whatever is
// rounded on the way; of one value, the largest finite one.
template <typename T>
constexpr T largest_addend(std::int64_t ranks) {
  constexpr T largest = std::numeric_limits<T>::max();
  return ranks == 1 ? largest : largest / static_cast<T>(2 * ranks);
}

}  // namespace thinwire
