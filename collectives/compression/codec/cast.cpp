#include "collectives/compression/codec/cast.h"

#include <bit>
#include <cmath>
#include <limits>

#include "collectives/compression/codec/blocks.h"
#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

constexpr std::uint32_t kInfinity = 0x7f800000;  // a float's

// value / 2^shift, to nearest with ties to even; shift is 1 to 31.
std::uint32_t shift_to_nearest(std::uint32_t value, std::uint32_t shift) {
  const std::uint32_t odd = value >> shift & 1;
  return (value + ((1u << (shift - 1)) - 1 + odd)) >> shift;
}

std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffff;
  const std::uint32_t sign = bits >> 16 & 0x8000;
  if (magnitude > kInfinity) return 0x7fc0;
  if (magnitude == kInfinity) return static_cast<std::uint16_t>(sign | 0x7f80);
  const std::uint32_t rounded = shift_to_nearest(magnitude, 16);
  return static_cast<std::uint16_t>(sign | std::min(rounded, 0x7f7fu));
}

std::uint16_t to_fp16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffff;
  const std::uint32_t sign = bits >> 16 & 0x8000;
  if (magnitude > kInfinity) return 0x7e00;
  if (magnitude == kInfinity) return static_cast<std::uint16_t>(sign | 0x7c00);
  const std::uint32_t exponent = magnitude >> 23;
  std::uint32_t rounded = 0;
  if (exponent >= 113) {
    // From 2^-14 on: a float's exponent is biased by 127, a half's by 15.
    rounded = std::min(shift_to_nearest(magnitude, 13) - (112u << 10), 0x7bffu);
  } else if (exponent >= 102) {
    // A multiple of 2^-24; below 2^-25 it is zero.
    rounded = shift_to_nearest((magnitude & 0x7fffff) | 0x800000, 126 - exponent);
  }
  return static_cast<std::uint16_t>(sign | rounded);
}

float from_bf16(std::uint16_t half) {
  return std::bit_cast<float>(std::uint32_t{half} << 16);
}

float from_fp16(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00) {
    return std::bit_cast<float>(sign | kInfinity | (magnitude & 0x3ff) << 13);
  }
  if (magnitude >= 0x400) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
}

float value_of(Half kind, const char* payload) {
  const auto half = load<std::uint16_t>(payload);
  return kind == Half::fp16 ? from_fp16(half) : from_bf16(half);
}

template <typename T>
float to_float(T value) {
  constexpr auto largest = static_cast<T>(std::numeric_limits<float>::max());
  // Written so that a NaN stays.
  if (std::isfinite(value) && std::abs(value) > largest) {
    return static_cast<float>(std::copysign(largest, value));
  }
  return static_cast<float>(value);
}

}  // namespace

std::string CastCodec::describe() const {
  return half_ == Half::fp16 ? "fp16 values" : "bf16 values";
}

Format CastCodec::format(std::int64_t) const {
  return {.coding = Coding::cast, .half = half_};
}

void CastCodec::encode(const at::Tensor& values, at::Tensor payload, const DrawKey&) const {
  with_type(values.scalar_type(), [&]<typename T>(T) {
    const T* from = values.const_data_ptr<T>();
    char* to = static_cast<char*>(payload.data_ptr());
    for (std::int64_t i = 0; i < values.numel(); ++i) {
      const float value = to_float(from[i]);
      store(to + 2 * i, half_ == Half::fp16 ? to_fp16(value) : to_bf16(value));
    }
  });
}

void CastCodec::decode_add(const at::Tensor& payload, double weight, at::Tensor into) const {
  with_type(into.scalar_type(), [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    T* to = into.data_ptr<T>();
    for (std::int64_t i = 0; i < into.numel(); ++i) {
      to[i] += static_cast<T>(weight) * static_cast<T>(value_of(half_, from + 2 * i));
    }
  });
}

bool CastCodec::finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
                       std::int64_t ranks) const {
  return with_type(dtype, [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    const T limit = largest_addend<T>(ranks);
    for (std::int64_t i = 0; i < count; ++i) {
      if (!(std::abs(static_cast<T>(value_of(half_, from + 2 * i))) <= limit)) return false;
    }
    return true;
  });
}

}  // namespace thinwire
