// The values themselves: exact, for tensors that are not worth coding.
#pragma once

#include "collectives/compression/codec/codec.h"

namespace thinwire {

class IdentityCodec final : public Codec {
 public:
  std::string describe() const override { return "uncompressed"; }
  std::int64_t block() const override { return 1; }
  Format format(std::int64_t count) const override;
  void encode(const at::Tensor& values, at::Tensor payload, const DrawKey& draws) const override;
  void decode_add(const at::Tensor& payload, double weight, at::Tensor into) const override;
  bool finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
              std::int64_t ranks) const override;
};

// Whether every value of a flat floating-point tensor is finite.
bool all_finite(const at::Tensor& values);

}  // namespace thinwire
