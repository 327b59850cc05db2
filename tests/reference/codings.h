// Every coding once more as plain loops over one value after another, straight from the definitions
// of codings/: one block of messages becomes a payload, and the other way round. The only
// definition of a coding in the tests; what else is in this folder and in kernel_oracle.h goes
// through it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "collectives/base/philox.h"
#include "collectives/compression/codings/list.h"
#include "collectives/compression/kernels/kernels.h"

namespace thinwire::reference {

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

template <typename T>
T get(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
void put(char* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

template <typename T>
T sum_in_lanes(const std::vector<T>& terms) {
  T lanes[32] = {};
  for (std::size_t i = 0; i < terms.size(); ++i) lanes[i % 32] += terms[i];
  for (int width = 16; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

// Which byte and bit of a row's words hold bit `plane` of value i, of `planes` words per row.
struct Bit {
  std::int64_t byte;
  int shift;
};
inline Bit bit_of(std::int64_t count, std::int64_t i, int plane, int planes) {
  const std::int64_t row = i / 32;
  const std::int64_t width = std::min<std::int64_t>(4, (count - 32 * row + 7) / 8);
  return {row * 4 * planes + plane * width + i % 32 / 8, static_cast<int>(i % 8)};
}

// ---- One value in 16 bits, by search among all that there are ----

inline double half_value(Half half, std::uint32_t bits) {
  const int fraction_bits = half == Half::bf16 ? 7 : 10;
  const int bias = half == Half::bf16 ? 127 : 15;
  const auto exponent = static_cast<int>(bits >> fraction_bits & (half == Half::bf16 ? 255u : 31u));
  const double fraction = bits & ((1u << fraction_bits) - 1);
  const double size = exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                                    : std::ldexp(fraction + std::ldexp(1.0, fraction_bits),
                                                 exponent - bias - fraction_bits);
  return (bits & 0x8000) != 0 ? -size : size;
}
inline std::uint16_t to_half(Half half, double value) {
  const std::uint32_t infinity = half == Half::bf16 ? 0x7f80 : 0x7c00;
  const std::uint32_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return half == Half::bf16 ? 0x7fc0 : 0x7e00;
  if (std::isinf(value)) return static_cast<std::uint16_t>(sign | infinity);
  const auto single_value =
      static_cast<float>(std::clamp(value, -static_cast<double>(std::numeric_limits<float>::max()),
                                    static_cast<double>(std::numeric_limits<float>::max())));
  const double size = std::abs(static_cast<double>(single_value));
  std::uint32_t below = 0;  // the largest that is not above
  for (std::uint32_t step = 0x4000; step > 0; step /= 2) {
    if (below + step < infinity && half_value(half, below + step) <= size) below += step;
  }
  if (below + 1 < infinity) {
    const double down = size - half_value(half, below);
    const double up = half_value(half, below + 1) - size;
    if (up < down || (up == down && below % 2 == 1)) ++below;
  }
  return static_cast<std::uint16_t>(sign | below);
}

// ---- One value in 8 bits, E4M3FN, by search too ----

inline double e4m3_value(std::uint32_t byte) {
  if ((byte & 0x7f) == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  const auto exponent = static_cast<int>(byte >> 3 & 15);
  const double fraction = byte & 7;
  const double size =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return (byte & 0x80) != 0 ? -size : size;
}
inline std::uint8_t to_e4m3(double value) {
  const double size = std::abs(value);
  std::uint32_t nearest = 0;
  for (std::uint32_t byte = 1; byte < 0x7f; ++byte) {
    const double here = std::abs(e4m3_value(byte) - size);
    const double best = std::abs(e4m3_value(nearest) - size);
    if (here < best || (here == best && byte % 2 == 0)) nearest = byte;
  }
  return static_cast<std::uint8_t>(nearest | (std::signbit(value) ? 0x80 : 0));
}

// ---- Payloads: for each coding what it decodes to, and how it is written ----

template <typename T>
void decode(CodingType<Uncompressed>, const Format&, const char* payload, std::vector<T>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = get<T>(payload + i * sizeof(T));
}

template <typename T>
void decode(CodingType<Sign>, const Format&, const char* payload, std::vector<T>& values) {
  const T scale = get<T>(payload);
  for (std::int64_t i = 0; i < std::ssize(values); ++i) {
    const Bit bit = bit_of(std::ssize(values), i, 0, 1);
    const bool plus =
        (payload[sizeof(T) + static_cast<std::size_t>(bit.byte)] >> bit.shift & 1) != 0;
    values[static_cast<std::size_t>(i)] = plus ? scale : -scale;
  }
}

template <typename T>
void decode(CodingType<Quantize>, const Format& format, const char* payload,
            std::vector<T>& values) {
  const bool max_min = Quantize::grid_of(format) == Grid::max_min;
  const T least = max_min ? get<T>(payload) : 0;
  const T unit = get<T>(payload + (max_min ? sizeof(T) : 0));
  const char* planes = payload + (max_min ? 2 : 1) * sizeof(T);
  for (std::int64_t i = 0; i < std::ssize(values); ++i) {
    int level = 0;
    for (int plane = 0; plane < format.bits; ++plane) {
      const Bit bit = bit_of(std::ssize(values), i, plane, format.bits);
      level |= (planes[bit.byte] >> bit.shift & 1) << plane;
    }
    values[static_cast<std::size_t>(i)] =
        max_min ? least + unit * static_cast<T>(level)
                : unit * static_cast<T>(level - ((1 << (format.bits - 1)) - 1));
  }
}

template <typename T>
void decode(CodingType<Cast>, const Format& format, const char* payload, std::vector<T>& values) {
  const Half half = Cast::half_of(format);
  const std::uint32_t infinity = half == Half::bf16 ? 0x7f80 : 0x7c00;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint32_t bits = get<std::uint16_t>(payload + 2 * i);
    T& value = values[i];
    value = static_cast<T>(half_value(half, bits));
    if ((bits & 0x7fff) > infinity) value = std::numeric_limits<T>::quiet_NaN();
    if ((bits & 0x7fff) == infinity) {
      value = std::copysign(std::numeric_limits<T>::infinity(), (bits & 0x8000) ? T{-1} : T{1});
    }
  }
}

template <typename T>
void decode(CodingType<TopK>, const Format& format, const char* payload, std::vector<T>& values) {
  constexpr auto width = static_cast<std::int64_t>(sizeof(T));
  const std::int64_t count = std::ssize(values);
  const auto kept = get<std::uint32_t>(payload);
  bool sense = kept <= static_cast<std::uint32_t>(format.entries);
  std::int64_t last = -1;
  for (std::int64_t k = 0; sense && k < static_cast<std::int64_t>(kept); ++k) {
    std::int64_t index = 0;
    for (int bit = 0; bit < TopK::index_bits(count); ++bit) {
      const std::int64_t place = k * TopK::index_bits(count) + bit;
      const char byte = payload[4 + format.entries * width + place / 8];
      index |= static_cast<std::int64_t>(byte >> (place % 8) & 1) << bit;
    }
    sense = index > last && index < count;
    if (sense) values[static_cast<std::size_t>(index)] = get<T>(payload + 4 + k * width);
    last = index;
  }
  if (!sense) std::fill(values.begin(), values.end(), std::numeric_limits<T>::quiet_NaN());
}

template <typename T>
void encode(CodingType<Sign>, const Format& format, const std::vector<T>& m, std::uint64_t,
            std::int64_t, char* payload) {
  std::vector<T> terms;
  for (const T x : m)
    terms.push_back(Sign::scale_of(format) == SignScale::l1 ? std::abs(x) : x * x);
  T scale = sum_in_lanes(terms) / static_cast<T>(m.size());
  if (Sign::scale_of(format) == SignScale::rms) scale = std::sqrt(scale);
  if (scale < std::numeric_limits<T>::min()) scale = 0;
  if (!std::isfinite(scale)) scale = std::numeric_limits<T>::quiet_NaN();
  put(payload, scale);
  for (std::int64_t i = 0; i < std::ssize(m); ++i) {
    const Bit bit = bit_of(std::ssize(m), i, 0, 1);
    const int one = m[static_cast<std::size_t>(i)] < 0 ? 0 : 1;
    char& byte = payload[static_cast<std::int64_t>(sizeof(T)) + bit.byte];
    byte = static_cast<char>(byte | one << bit.shift);
  }
}

template <typename T>
void encode(CodingType<Quantize>, const Format& format, const std::vector<T>& m, std::uint64_t key,
            std::int64_t begin, char* payload) {
  const bool max_min = Quantize::grid_of(format) == Grid::max_min;
  const int half = (1 << (format.bits - 1)) - 1;
  const int top = max_min ? (1 << format.bits) - 1 : 2 * half;
  bool finite = true;
  T least = std::numeric_limits<T>::infinity();
  T largest = -least;
  T size = 0;
  for (const T x : m) {
    finite = finite && std::isfinite(x);
    least = std::min(least, x);
    largest = std::max(largest, x);
    size = std::max(size, std::abs(x));
  }
  least += T{0};
  T unit = max_min ? ((largest + T{0}) - least) / static_cast<T>(top) : size / static_cast<T>(half);
  const T end = max_min ? least + unit * static_cast<T>(top) : unit * static_cast<T>(half);
  T inverse = 0;
  if (!finite || !std::isfinite(unit) || !std::isfinite(end)) {
    least = unit = std::numeric_limits<T>::quiet_NaN();
  } else if (unit < std::numeric_limits<T>::min()) {
    unit = 0;
    if (std::abs(least) < std::numeric_limits<T>::min()) least = 0;
  } else {
    inverse = T{1} / unit;
  }
  if (max_min) put(payload, least);
  put(payload + (max_min ? sizeof(T) : 0), unit);
  if (inverse == 0) return;
  char* planes = payload + (max_min ? 2 : 1) * sizeof(T);
  for (std::int64_t i = 0; i < std::ssize(m); ++i) {
    const T x = m[static_cast<std::size_t>(i)];
    T draw = static_cast<T>(0.5);
    if (Quantize::rounding_of(format) == Rounding::stochastic) {
      const auto place = static_cast<std::uint64_t>(begin + i / 128 * 32 + i % 32);
      const std::uint32_t word = philox(key, 0, place)[static_cast<std::size_t>(i / 32 % 4)];
      draw = static_cast<T>(word >> 8) / static_cast<T>(1 << 24);
    }
    const T v = max_min ? (x - least) * inverse : x * inverse + static_cast<T>(half);
    const int level = static_cast<int>(std::clamp(std::floor(v + draw), T{0}, static_cast<T>(top)));
    for (int plane = 0; plane < format.bits; ++plane) {
      const Bit bit = bit_of(std::ssize(m), i, plane, format.bits);
      planes[bit.byte] = static_cast<char>(planes[bit.byte] | (level >> plane & 1) << bit.shift);
    }
  }
}

template <typename T>
void encode(CodingType<TopK>, const Format& format, const std::vector<T>& m, std::uint64_t,
            std::int64_t, char* payload) {
  for (const T x : m) {
    if (std::isfinite(x)) continue;
    put(payload, std::uint32_t{0xffffffff});
    return;
  }
  const auto bits_at = [&](std::int64_t i) {
    return std::bit_cast<Bits<T>>(std::abs(m[static_cast<std::size_t>(i)]));
  };
  const std::int64_t count = std::ssize(m);
  // Those that are kept, in order of size and then of their indices.
  std::vector<std::int64_t> order;
  for (std::int64_t i = 0; i < count; ++i) {
    if (bits_at(i) != 0) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return bits_at(a) > bits_at(b); });
  const auto passing = [&](Bits<T> least) {
    return std::count_if(order.begin(), order.end(),
                         [&](std::int64_t i) { return bits_at(i) >= least; });
  };
  std::int64_t kept = std::min<std::int64_t>(format.entries, std::ssize(order));
  if (TopK::selection_of(format) == Selection::threshold) {
    Bits<T> low = 0;
    Bits<T> high = order.empty() ? 1 : bits_at(order.front()) + 1;
    while (high - low > 1) {
      const Bits<T> mid = low + (high - low) / 2;
      (passing(mid) > format.entries ? low : high) = mid;
      if (high == mid && 20 * passing(high) >= 19 * std::int64_t{format.entries}) {
        kept = passing(high);
        break;
      }
    }
  }
  order.resize(static_cast<std::size_t>(kept));
  std::sort(order.begin(), order.end());
  put(payload, static_cast<std::uint32_t>(kept));
  for (std::int64_t k = 0; k < kept; ++k) {
    const std::int64_t index = order[static_cast<std::size_t>(k)];
    put(payload + 4 + k * static_cast<std::int64_t>(sizeof(T)), m[static_cast<std::size_t>(index)]);
    for (int bit = 0; bit < TopK::index_bits(count); ++bit) {
      const std::int64_t place = k * TopK::index_bits(count) + bit;
      char& byte = payload[4 + format.entries * static_cast<std::int64_t>(sizeof(T)) + place / 8];
      byte = static_cast<char>(byte | (index >> bit & 1) << (place % 8));
    }
  }
}

template <typename T>
void encode(CodingType<Uncompressed>, const Format&, const std::vector<T>& m, std::uint64_t,
            std::int64_t, char* payload) {
  std::memcpy(payload, m.data(), m.size() * sizeof(T));
}

template <typename T>
void encode(CodingType<Cast>, const Format& format, const std::vector<T>& m, std::uint64_t,
            std::int64_t, char* payload) {
  for (std::size_t i = 0; i < m.size(); ++i) {
    put(payload + 2 * i, to_half(Cast::half_of(format), static_cast<double>(m[i])));
  }
}

template <typename T>
void decode(CodingType<Fp8>, const Format&, const char* payload, std::vector<T>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto byte = static_cast<unsigned char>(payload[sizeof(T) + i]);
    values[i] = static_cast<T>(e4m3_value(byte)) * get<T>(payload);
  }
}

template <typename T>
void encode(CodingType<Fp8>, const Format&, const std::vector<T>& m, std::uint64_t, std::int64_t,
            char* payload) {
  double largest = 0;
  bool finite = true;
  for (const T x : m) {
    finite = finite && std::isfinite(x);
    largest = std::max(largest, static_cast<double>(std::abs(x)));
  }
  if (!finite) return put(payload, std::numeric_limits<T>::quiet_NaN());
  int exponent = 0;
  std::frexp(largest / 448, &exponent);
  double scale = std::ldexp(1.0, exponent - 1);
  if (448 * scale < largest) scale *= 2;
  if (largest == 0 || scale < static_cast<double>(std::numeric_limits<T>::min())) scale = 0;
  put(payload, static_cast<T>(scale));
  if (scale == 0) return;
  for (std::size_t i = 0; i < m.size(); ++i) {
    payload[sizeof(T) + i] = static_cast<char>(to_e4m3(static_cast<double>(m[i]) / scale));
  }
}

// What a payload is judged by: the values that it decodes to.
template <typename C, typename T>
std::vector<T> judged(CodingType<C> coding, const Format& format, std::int64_t count,
                      const char* payload) {
  std::vector<T> values(static_cast<std::size_t>(count));
  decode(coding, format, payload, values);
  return values;
}
// Of a grid its ends, whatever the levels.
template <typename C, typename T>
requires std::is_same_v<C, Quantize> std::vector<T> judged(CodingType<C>, const Format& format,
                                                           std::int64_t, const char* payload) {
  const auto half = static_cast<T>((1 << (format.bits - 1)) - 1);
  const auto top = static_cast<T>((1 << format.bits) - 1);
  const T first = get<T>(payload);
  if (Quantize::grid_of(format) == Grid::symmetric) return {first * half};
  return {first, first + get<T>(payload + sizeof(T)) * top};
}

// ---- Of any coding; nothing of a held block ----

// The payload of a block of messages; `begin` is its first element in the bucket.
template <typename T>
std::vector<char> encode_block(const Format& format, const std::vector<T>& m, std::uint64_t key,
                               std::int64_t begin) {
  std::vector<char> payload(static_cast<std::size_t>(payload_bytes<T>(format, std::ssize(m))));
  if (m.empty()) return payload;
  with_coding(format.coding,
              [&](auto coding) { encode(coding, format, m, key, begin, payload.data()); });
  return payload;
}

template <typename T>
std::vector<T> decode_block(const Format& format, std::int64_t count, const char* payload) {
  std::vector<T> values(static_cast<std::size_t>(count));
  if (count == 0) return values;
  with_coding(format.coding, [&](auto coding) { decode(coding, format, payload, values); });
  return values;
}

// Whether a payload is one of finite values whose sum over `ranks` is finite too.
template <typename T>
bool finite_block(const Format& format, std::int64_t count, const char* payload,
                  std::int64_t ranks) {
  if (count == 0) return true;
  const T largest = std::numeric_limits<T>::max();
  const T limit = ranks == 1 ? largest : largest / static_cast<T>(2 * ranks);
  std::vector<T> values;
  with_coding(format.coding, [&](auto coding) {
    values = judged<typename decltype(coding)::type, T>(coding, format, count, payload);
  });
  return std::all_of(values.begin(), values.end(), [&](T x) { return std::abs(x) <= limit; });
}

}  // namespace thinwire::reference
