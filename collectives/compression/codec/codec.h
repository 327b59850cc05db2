// What is sent instead of a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "collectives/compression/kernels/format.h"

namespace thinwire {

// What random draws of one encoding are keyed by: `key` by run, step, bucket, rank and side,
// `begin` by the place of the first value in its bucket (kernels.h says how).
struct DrawKey {
  std::uint64_t key = 0;
  std::int64_t begin = 0;
};

// A pure function pair: dense -> payload -> added into dense. It keeps nothing and sends nothing.
//
// Values are flat contiguous float32 or float64 tensors; payloads are flat uint8 tensors of exactly
// `payload_bytes`. Scales travel inside the payload. A block with a NaN or an infinity, or whose
// scale overflows, makes the payload say so: it decodes to NaN, and `finite` is false.
//
// To add a codec: derive from this, add its options to CompressionOptions (options.h) and its row
// to the table of valid combinations (options.cpp).
class Codec {
 public:
  virtual ~Codec() = default;

  // For people: "sign, one scale per 1024 values".
  virtual std::string describe() const = 0;
  // Elements that are coded together; a tensor may be cut at multiples of it, and the payloads of
  // the parts are the parts of the payload.
  virtual std::int64_t block() const = 0;
  // How a block of `count` values, at most `block()`, is coded.
  virtual Format format(std::int64_t count) const = 0;
  // The contraction delta = 1 - |x - C(x)|^2 / |x|^2, where it is known beforehand.
  virtual std::optional<double> contraction() const { return std::nullopt; }
  // Known from the shape alone.
  std::int64_t payload_bytes(std::int64_t count, at::ScalarType dtype) const;
  virtual void encode(const at::Tensor& values, at::Tensor payload, const DrawKey& draws) const = 0;
  // into += weight * decoded; weight is 1 or -1, so nothing is rounded on the way.
  virtual void decode_add(const at::Tensor& payload, double weight, at::Tensor into) const = 0;
  // Whether what the payload decodes to is finite, and so is the sum of it and of what the other
  // ranks' payloads decode to if the same is true of them (format.h: largest_addend). A grid is
  // judged by its ends, whatever the levels; one beyond them, which no encoder writes, is not seen.
  virtual bool finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
                      std::int64_t ranks) const = 0;
};

}  // namespace thinwire
