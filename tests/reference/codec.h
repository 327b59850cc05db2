// Whole tensors through codings in plain code.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "collectives/compression/codec/codec.h"
#include "collectives/compression/options.h"

namespace thinwire::reference {

// What random draws of one encoding are keyed by: `key` by run, step, bucket, rank and side,
// `begin` by the place of the first value in its bucket (kernels.h says how).
struct DrawKey {
  std::uint64_t key = 0;
  std::int64_t begin = 0;
};

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

// Values are flat contiguous float32 or float64 tensors; payloads are flat uint8 tensors of exactly
// `payload_bytes`, and may be any bytes.
void encode(const Codec& codec, const at::Tensor& values, at::Tensor payload,
            const DrawKey& draws = {});
// into += weight * decoded; weight is 1 or -1, so nothing is rounded on the way.
void decode_add(const Codec& codec, const at::Tensor& payload, double weight, at::Tensor into);
// Whether all that the payload decodes to is finite, and so would be its sum with as much from each
// of the other ranks (format.h: largest_addend).
bool finite(const Codec& codec, const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
            std::int64_t ranks);

// A codec by its options, and what plain code makes of it.
class PlainCodec {
 public:
  // Throws `UsageError` for options that cannot be.
  explicit PlainCodec(const CodecOptions& options);

  const Codec& codec() const { return *codec_; }
  std::string describe() const { return codec_->describe(); }
  std::int64_t block() const { return codec_->block(); }
  Format format(std::int64_t count) const { return codec_->format(count); }
  std::optional<double> contraction() const { return codec_->contraction(); }
  std::int64_t payload_bytes(std::int64_t count, at::ScalarType dtype) const {
    return codec_->payload_bytes(count, dtype);
  }
  void encode(const at::Tensor& values, at::Tensor payload, const DrawKey& draws = {}) const {
    reference::encode(*codec_, values, std::move(payload), draws);
  }
  void decode_add(const at::Tensor& payload, double weight, at::Tensor into) const {
    reference::decode_add(*codec_, payload, weight, std::move(into));
  }
  bool finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
              std::int64_t ranks) const {
    return reference::finite(*codec_, payload, count, dtype, ranks);
  }

 private:
  std::shared_ptr<const Codec> codec_;
};

// Whether every value of a flat floating-point tensor is finite.
bool all_finite(const at::Tensor& values);

}  // namespace thinwire::reference
