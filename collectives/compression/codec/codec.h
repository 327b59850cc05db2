// What is sent instead of a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "collectives/compression/kernels/format.h"

namespace thinwire {

// Values; a block's count is 32 bits, and lanes of a sum should not grow too long.
constexpr std::int64_t kLargestBlock = std::int64_t{1} << 24;

// How a tensor is cut into blocks and how each of them travels. It keeps nothing and sends nothing;
// the kernels code by the blocks' formats.
//
// To add a codec: derive from this, add its options to CodecOptions (options.h) and its row to the
// table of valid combinations (options.cpp).
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
};

}  // namespace thinwire
