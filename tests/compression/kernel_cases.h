// Random tables of blocks and values that find mistakes, for the tests of kernels on host and GPU.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "collectives/base/philox.h"
#include "collectives/compression/codings/list.h"
#include "collectives/compression/kernels/kernels.h"

namespace thinwire::kernel_cases {

// Small random numbers that follow from one seed.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : draws_(seed, PhiloxStream::synthetic_data, 0) {}
  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(draws_.below(next_++, static_cast<std::uint64_t>(bound)));
  }
  double uniform() { return draws_.uniform(next_++); }

 private:
  Philox draws_;
  std::uint64_t next_ = 0;
};

// A bucket that is cut into blocks of all sizes and codings, with gaps between them.
struct Table {
  std::vector<Block> blocks;
  std::int64_t numel = 0;  // of the bucket
  std::int64_t bytes = 0;  // of the packed message
};

// Any coding with any of its options, for `count` values: one row for each.
inline Format random_format(Dice& dice, std::int32_t count) {
  // Few, some, or any number of them.
  const std::int64_t most = std::max<std::int64_t>(1, count / (dice.below(2) == 0 ? 20 : 1));
  const auto kept = static_cast<std::int32_t>(1 + dice.below(most));
  const auto bits = static_cast<int>(1 + dice.below(8));
  const auto variant = dice.below(2);
  const auto rounding = static_cast<Rounding>(dice.below(2));
  Format top_k = format_of(TopK{.selection = static_cast<Selection>(variant)}, count);
  top_k.entries = kept;
  const std::vector<Format> rows = {
      {.coding = Coding::held},
      format_of(Uncompressed{}, count),
      format_of(Sign{.scale = static_cast<SignScale>(variant)}, count),
      format_of(Quantize{.bits = bits, .grid = Grid::max_min, .rounding = rounding}, count),
      format_of(Quantize{.bits = std::max(2, bits), .grid = Grid::symmetric, .rounding = rounding},
                count),
      format_of(Cast{static_cast<Half>(variant)}, count),
      format_of(Fp8{}, count),
      top_k,
  };
  return rows[static_cast<std::size_t>(dice.below(std::ssize(rows)))];
}

// Raw values, signs and held blocks.
inline Format random_sign_format(Dice& dice, std::int32_t count) {
  const std::int64_t which = dice.below(3);
  if (which == 0) return format_of(Uncompressed{}, count);
  return which == 1 ? format_of(Sign{}, count) : Format{.coding = Coding::held};
}

template <typename T>
Table random_table(Dice& dice,
                   Format (*format_of)(Dice&, std::int32_t count) = random_sign_format) {
  constexpr std::int32_t sizes[] = {0,  1,  7,  8,   9,   31,   32,   33,
                                    63, 64, 65, 100, 999, 1023, 1024, 1030};
  Table table;
  std::int64_t begin = dice.below(5);
  for (std::int32_t i = 0; i < 24; ++i) {
    Block block;
    block.begin = begin;
    block.count = dice.below(2) == 0 ? sizes[dice.below(16)]
                                     : static_cast<std::int32_t>(1 + dice.below(1030));
    block.slice = i / 2;
    block.format = format_of(dice, block.count);
    block.payload = table.bytes;
    table.bytes += payload_bytes<T>(block.format, block.count);
    begin += block.count + dice.below(3);
    table.blocks.push_back(block);
  }
  table.numel = begin;
  return table;
}

// The second half of a bucket's blocks: the chunk that this rank owns.
struct OwnedChunk {
  Table bucket;
  Table chunk;  // payloads from the chunk's start
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t payload_begin = 0;
  const Block* blocks() const { return bucket.blocks.data() + 12; }  // payloads from the bucket's
};

template <typename T>
OwnedChunk random_chunk(Dice& dice,
                        Format (*format_of)(Dice&, std::int32_t count) = random_sign_format) {
  OwnedChunk owned;
  owned.bucket = random_table<T>(dice, format_of);
  owned.chunk.numel = owned.bucket.numel;
  owned.chunk.blocks.assign(owned.bucket.blocks.begin() + 12, owned.bucket.blocks.end());
  owned.payload_begin = owned.chunk.blocks.front().payload;
  owned.chunk.bytes = owned.bucket.bytes - owned.payload_begin;
  for (Block& block : owned.chunk.blocks) block.payload -= owned.payload_begin;
  owned.begin = owned.chunk.blocks.front().begin;
  owned.end = owned.chunk.blocks.back().begin + owned.chunk.blocks.back().count;
  return owned;
}

enum class Values { finite, any };

// Uniform values, with blocks of zeros of both signs, denormals, scales around the smallest normal
// number and, with `any`, sums that overflow and single NaNs and infinities. Gaps are zero.
template <typename T>
std::vector<T> random_values(Dice& dice, const Table& table, Values values) {
  using Limits = std::numeric_limits<T>;
  std::vector<T> flat(static_cast<std::size_t>(table.numel));
  for (const Block& block : table.blocks) {
    const std::int64_t kind = dice.below(values == Values::any ? 10 : 6);
    for (std::int64_t i = 0; i < block.count; ++i) {
      T& value = flat[static_cast<std::size_t>(block.begin + i)];
      const T x = static_cast<T>(2 * dice.uniform() - 1);
      value = x;
      if (kind == 1) value = std::copysign(T{0}, x);
      if (kind == 2) value = x * Limits::min();
      if (kind == 3) value = std::copysign(static_cast<T>(dice.below(4)) * Limits::min() / 2, x);
      if (kind == 6) value = x * Limits::max();
    }
    if (kind < 7 || block.count == 0) continue;
    const T bad[] = {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()};
    flat[static_cast<std::size_t>(block.begin + dice.below(block.count))] = bad[kind - 7];
  }
  return flat;
}

// Equal bits, but for those of a NaN.
template <typename T>
bool equal_bits(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(T)) == 0;
}

// Where two arrays differ; empty if nowhere.
template <typename T>
std::string difference(const T* a, const T* b, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (!equal_bits(a[i], b[i])) return fmt::format("element {}: {} and {}", i, a[i], b[i]);
  }
  return {};
}

// Where two packed messages differ: raw values as values, all else byte by byte.
template <typename T>
std::string payload_difference(const Table& table, const char* a, const char* b) {
  for (const Block& block : table.blocks) {
    const std::int64_t bytes = payload_bytes<T>(block.format, block.count);
    std::string found;
    if (block.format.coding == Coding::raw) {
      std::vector<T> x(static_cast<std::size_t>(block.count));
      std::vector<T> y(static_cast<std::size_t>(block.count));
      if (bytes > 0) std::memcpy(x.data(), a + block.payload, static_cast<std::size_t>(bytes));
      if (bytes > 0) std::memcpy(y.data(), b + block.payload, static_cast<std::size_t>(bytes));
      found = difference(x.data(), y.data(), block.count);
    } else {
      // NaN scales are one constant, so they too are compared by their bits.
      for (std::int64_t i = 0; i < bytes && found.empty(); ++i) {
        if (a[block.payload + i] != b[block.payload + i]) found = fmt::format("byte {}", i);
      }
    }
    if (!found.empty()) {
      return fmt::format("block of {} at {}: {}", block.count, block.begin, found);
    }
  }
  return {};
}

}  // namespace thinwire::kernel_cases
