// Coding and decoding whole tensors, and values to do it to.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "collectives/base/philox.h"
#include "tests/reference/codec.h"

namespace thinwire::testing {

using reference::DrawKey;
using reference::PlainCodec;

// Into a payload that was full of something else.
inline at::Tensor encode(const PlainCodec& codec, const at::Tensor& values,
                         const DrawKey& draws = {}) {
  at::Tensor payload =
      at::full({codec.payload_bytes(values.numel(), values.scalar_type())}, 0xA5, at::kByte);
  codec.encode(values, payload, draws);
  return payload;
}

inline at::Tensor decode(const PlainCodec& codec, const at::Tensor& payload,
                         const at::Tensor& like) {
  at::Tensor values = at::zeros_like(like);
  codec.decode_add(payload, 1, values);
  return values;
}

// C(x).
inline at::Tensor coded(const PlainCodec& codec, const at::Tensor& values,
                        const DrawKey& draws = {}) {
  return decode(codec, encode(codec, values, draws), values);
}

// Uniform in (-1, 1).
inline at::Tensor uniform_values(std::int64_t count, at::ScalarType dtype, std::uint64_t key = 0) {
  at::Tensor tensor = at::empty({count}, at::kDouble);
  const Philox draws(3, PhiloxStream::synthetic_data, key);
  for (std::int64_t i = 0; i < count; ++i) {
    tensor.data_ptr<double>()[i] = 2 * draws.uniform(static_cast<std::uint64_t>(i)) - 1;
  }
  return tensor.to(dtype);
}

// Standard normal.
inline at::Tensor normal_values(std::int64_t count, at::ScalarType dtype, std::uint64_t key = 0) {
  at::Tensor tensor = at::empty({count}, at::kDouble);
  const Philox draws(5, PhiloxStream::synthetic_data, key);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto place = static_cast<std::uint64_t>(2 * i);
    tensor.data_ptr<double>()[i] = std::sqrt(-2 * std::log(1 - draws.uniform(place))) *
                                   std::cos(2 * M_PI * draws.uniform(place + 1));
  }
  return tensor.to(dtype);
}

inline double square_norm(const at::Tensor& values) {
  return values.to(at::kDouble).square().sum().item<double>();
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         (a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}

}  // namespace thinwire::testing
