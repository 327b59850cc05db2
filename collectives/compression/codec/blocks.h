// What the plain codecs share: the walk over blocks, sums in lanes, draws.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "collectives/base/philox.h"
#include "collectives/compression/codec/codec.h"

namespace thinwire {

// Values; a block's count is 32 bits, and lanes of a sum should not grow too long.
constexpr std::int64_t kLargestBlock = std::int64_t{1} << 24;

// One block of a tensor of `count` values.
struct CodedBlock {
  std::int64_t begin = 0;    // values before it in the tensor
  std::int64_t count = 0;    // its values
  std::int64_t payload = 0;  // bytes before it in the tensor's payload
  Format format = {};
};

template <typename T, typename Body>
void for_each_block(const Codec& codec, std::int64_t count, const Body& body) {
  CodedBlock block;
  for (; block.begin < count; block.begin += codec.block()) {
    block.count = std::min(codec.block(), count - block.begin);
    block.format = codec.format(block.count);
    body(block);
    block.payload += payload_bytes<T>(block.format, block.count);
  }
}

// Payloads are packed, so values in them are not aligned.
template <typename T>
T load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
void store(char* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

// term(0) + ... + term(count - 1), formed in 32 lanes, i in lane i % 32, and folded: so its bits do
// not depend on the machine.
template <typename T, typename Term>
T lane_sum(std::int64_t count, const Term& term) {
  constexpr std::int64_t kLanes = 32;
  T lanes[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) lanes[i % kLanes] += term(i);
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

// Uniform in [0, 1), 24 bits: the draw of value i of the block whose first value is element `begin`
// of its bucket.
template <typename T>
T rounding_draw(std::uint64_t key, std::int64_t begin, std::int64_t i) {
  const auto counter = static_cast<std::uint64_t>(begin + i / 128 * 32 + i % 32);
  const std::uint32_t word = philox(key, 0, counter)[static_cast<std::size_t>(i / 32 % 4)];
  return static_cast<T>(word >> 8) * static_cast<T>(0x1p-24);
}

}  // namespace thinwire
