// Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011): a draw is a pure function
// of a key and a counter, so there is no generator state to share between ranks or to save.
#pragma once

#include <array>
#include <cstdint>

namespace thinwire {

using PhiloxBlock = std::array<std::uint32_t, 4>;

// The 128 random bits at `counter` under `key`.
constexpr PhiloxBlock philox(std::uint64_t key, std::uint64_t counter_high,
                             std::uint64_t counter_low) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key);
  std::uint32_t k1 = static_cast<std::uint32_t>(key >> 32);
  PhiloxBlock c{
      static_cast<std::uint32_t>(counter_low), static_cast<std::uint32_t>(counter_low >> 32),
      static_cast<std::uint32_t>(counter_high), static_cast<std::uint32_t>(counter_high >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// What a stream of draws is for; keeps streams with equal seeds apart.
enum class PhiloxStream : std::uint64_t {
  initialization = 1,
  data_order = 2,
  synthetic_data = 3,
  rounding = 4,
  dropout = 5,
  low_rank = 6,
};

// One stream of draws: `seed` and `stream` make the key, `substream` (a step, an epoch, the hash of
// a tensor's name) the upper counter word.
class Philox {
 public:
  constexpr Philox(std::uint64_t seed, PhiloxStream stream, std::uint64_t substream)
      : key_(seed * 0x9E3779B97F4A7C15u + static_cast<std::uint64_t>(stream)),
        substream_(substream) {}

  // 128 random bits, the `index`-th of this stream.
  constexpr PhiloxBlock block(std::uint64_t index) const { return philox(key_, substream_, index); }
  // The lower 64 of them.
  constexpr std::uint64_t bits(std::uint64_t index) const {
    const PhiloxBlock words = block(index);
    return (std::uint64_t{words[1]} << 32) | words[0];
  }
  // Uniform in [0, 1), 53 bits.
  constexpr double uniform(std::uint64_t index) const {
    return static_cast<double>(bits(index) >> 11) * 0x1.0p-53;
  }
  // Uniform in [0, bound); the bias is below bound / 2^64.
  constexpr std::uint64_t below(std::uint64_t index, std::uint64_t bound) const {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(bits(index)) * bound) >> 64);
  }
  constexpr std::uint64_t key() const { return key_; }

 private:
  std::uint64_t key_;
  std::uint64_t substream_;
};

}  // namespace thinwire
