#include "collectives/compression/codec/identity.h"

#include <cmath>
#include <cstring>

#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

template <typename T>
bool all_finite(const T* values, std::int64_t count) {
  // x - x is zero for finite x and NaN otherwise; the lanes let it vectorise.
  constexpr std::int64_t kLanes = 32;
  T lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] += values[i + lane] - values[i + lane];
  }
  for (; i < count; ++i) lanes[0] += values[i] - values[i];
  T sum = 0;
  for (const T lane : lanes) sum += lane;
  return sum == 0;
}

}  // namespace

bool all_finite(const at::Tensor& values) {
  return with_type(values.scalar_type(), [&]<typename T>(T) {
    return all_finite(values.const_data_ptr<T>(), values.numel());
  });
}

Format IdentityCodec::format(std::int64_t) const {
  return {.coding = Coding::raw};
}

void IdentityCodec::encode(const at::Tensor& values, at::Tensor payload, const DrawKey&) const {
  if (values.numel() > 0) std::memcpy(payload.data_ptr(), values.const_data_ptr(), values.nbytes());
}

void IdentityCodec::decode_add(const at::Tensor& payload, double weight, at::Tensor into) const {
  with_type(into.scalar_type(), [&]<typename T>(T) {
    // Payloads are packed, so values in them are not aligned.
    const auto* from = static_cast<const char*>(payload.const_data_ptr());
    T* to = into.data_ptr<T>();
    const T factor = static_cast<T>(weight);
    for (std::int64_t i = 0; i < into.numel(); ++i) {
      T value;
      std::memcpy(&value, from + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
      to[i] += factor * value;
    }
  });
}

bool IdentityCodec::finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
                           std::int64_t ranks) const {
  return with_type(dtype, [&]<typename T>(T) {
    const T limit = largest_addend<T>(ranks);
    const auto* from = static_cast<const char*>(payload.const_data_ptr());
    for (std::int64_t i = 0; i < count; ++i) {
      T value;
      std::memcpy(&value, from + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
      if (!(std::abs(value) <= limit)) return false;
    }
    return true;
  });
}

}  // namespace thinwire
