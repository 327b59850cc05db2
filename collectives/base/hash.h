// 64-bit and 128-bit XXH3 checksums, as hex where a person or a file sees them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace thinwire {

std::uint64_t hash64(const void* data, std::size_t bytes, std::uint64_t seed = 0);
inline std::uint64_t hash64(std::string_view text, std::uint64_t seed = 0) {
  return hash64(text.data(), text.size(), seed);
}

// 32 lower-case hex digits.
std::string hash128_hex(const void* data, std::size_t bytes);

// 16 lower-case hex digits.
std::string hex64(std::uint64_t value);

}  // namespace thinwire
