#include "collectives/compression/codec/sign.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

constexpr std::int64_t kLanes = 32;

template <typename T>
T sum_of_magnitudes(const T* values, std::int64_t count) {
  T lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += std::abs(values[i + lane]);
  }
  for (std::int64_t lane = 0; i + lane < count; ++lane) lanes[lane] += std::abs(values[i + lane]);
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

template <typename T>
T scale_of(const T* values, std::int64_t count) {
  const T scale = sum_of_magnitudes(values, count) / static_cast<T>(count);
  if (!std::isfinite(scale)) return std::numeric_limits<T>::quiet_NaN();
  return scale < std::numeric_limits<T>::min() ? T{0} : scale;
}

template <typename T>
void encode_block(const T* values, std::int64_t count, char* payload) {
  const T scale = scale_of(values, count);
  std::memcpy(payload, &scale, sizeof(T));
  auto* bits = reinterpret_cast<unsigned char*>(payload + sizeof(T));
  for (std::int64_t i = 0; i < count; i += 8) {
    unsigned byte = 0;
    const std::int64_t here = std::min<std::int64_t>(8, count - i);
    for (std::int64_t k = 0; k < here; ++k) byte |= (values[i + k] < 0 ? 0u : 1u) << k;
    bits[i / 8] = static_cast<unsigned char>(byte);
  }
}

template <typename T>
void decode_add_block(const char* payload, T weight, T* into, std::int64_t count) {
  T scale;
  std::memcpy(&scale, payload, sizeof(T));
  const T signs[2] = {-scale * weight, scale * weight};
  const auto* bits = reinterpret_cast<const unsigned char*>(payload + sizeof(T));
  for (std::int64_t i = 0; i < count; ++i) into[i] += signs[(bits[i / 8] >> (i % 8)) & 1];
}

}  // namespace

std::string SignCodec::describe() const {
  return fmt::format("sign, one scale per {} values", block_);
}

Format SignCodec::format(std::int64_t) const {
  return {.coding = Coding::sign};
}

void SignCodec::encode(const at::Tensor& values, at::Tensor payload, const DrawKey&) const {
  with_type(values.scalar_type(), [&]<typename T>(T) {
    const T* from = values.const_data_ptr<T>();
    char* to = static_cast<char*>(payload.data_ptr());
    for (std::int64_t begin = 0; begin < values.numel(); begin += block_) {
      const std::int64_t count = std::min(block_, values.numel() - begin);
      encode_block(from + begin, count, to);
      to += payload_bytes(count, values.scalar_type());
    }
  });
}

void SignCodec::decode_add(const at::Tensor& payload, double weight, at::Tensor into) const {
  with_type(into.scalar_type(), [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    T* to = into.data_ptr<T>();
    for (std::int64_t begin = 0; begin < into.numel(); begin += block_) {
      const std::int64_t count = std::min(block_, into.numel() - begin);
      decode_add_block(from, static_cast<T>(weight), to + begin, count);
      from += payload_bytes(count, into.scalar_type());
    }
  });
}

bool SignCodec::finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype) const {
  return with_type(dtype, [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    for (std::int64_t begin = 0; begin < count; begin += block_) {
      T scale;
      std::memcpy(&scale, from, sizeof(T));
      if (!std::isfinite(scale)) return false;
      from += payload_bytes(std::min(block_, count - begin), dtype);
    }
    return true;
  });
}

}  // namespace thinwire
