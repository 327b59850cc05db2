#include "collectives/compression/codec/sign.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "collectives/compression/codec/blocks.h"
#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

template <typename T>
T scale_of(const T* values, std::int64_t count, SignScale kind) {
  const T divisor = static_cast<T>(count);
  const T scale =
      kind == SignScale::l1
          ? lane_sum<T>(count, [&](std::int64_t i) { return std::abs(values[i]); }) / divisor
          : std::sqrt(lane_sum<T>(count, [&](std::int64_t i) { return values[i] * values[i]; }) /
                      divisor);
  if (!std::isfinite(scale)) return std::numeric_limits<T>::quiet_NaN();
  return scale < std::numeric_limits<T>::min() ? T{0} : scale;
}

template <typename T>
void encode_block(const T* values, std::int64_t count, SignScale kind, char* payload) {
  store(payload, scale_of(values, count, kind));
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
  const T scale = load<T>(payload);
  const T signs[2] = {-scale * weight, scale * weight};
  const auto* bits = reinterpret_cast<const unsigned char*>(payload + sizeof(T));
  for (std::int64_t i = 0; i < count; ++i) into[i] += signs[(bits[i / 8] >> (i % 8)) & 1];
}

}  // namespace

std::string SignCodec::describe() const {
  return fmt::format("sign, one {}scale per {} values", scale_ == SignScale::rms ? "rms " : "",
                     block_);
}

Format SignCodec::format(std::int64_t) const {
  return {.coding = Coding::sign, .scale = scale_};
}

void SignCodec::encode(const at::Tensor& values, at::Tensor payload, const DrawKey&) const {
  with_type(values.scalar_type(), [&]<typename T>(T) {
    const T* from = values.const_data_ptr<T>();
    char* to = static_cast<char*>(payload.data_ptr());
    for_each_block<T>(*this, values.numel(), [&](const CodedBlock& block) {
      encode_block(from + block.begin, block.count, scale_, to + block.payload);
    });
  });
}

void SignCodec::decode_add(const at::Tensor& payload, double weight, at::Tensor into) const {
  with_type(into.scalar_type(), [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    T* to = into.data_ptr<T>();
    for_each_block<T>(*this, into.numel(), [&](const CodedBlock& block) {
      decode_add_block(from + block.payload, static_cast<T>(weight), to + block.begin, block.count);
    });
  });
}

bool SignCodec::finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
                       std::int64_t ranks) const {
  return with_type(dtype, [&]<typename T>(T) {
    const T limit = largest_addend<T>(ranks);
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    bool finite = true;
    for_each_block<T>(*this, count, [&](const CodedBlock& block) {
      finite = finite && std::abs(load<T>(from + block.payload)) <= limit;
    });
    return finite;
  });
}

}  // namespace thinwire
