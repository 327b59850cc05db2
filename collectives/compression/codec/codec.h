// What is sent instead of a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "collectives/compression/options.h"

namespace thinwire {

// Where a coding's range ends, so that larger values are clamped.
struct Clamp {
  double largest = 0;
  std::string coding;   // "fp16"
  std::string instead;  // what to use, as words of the command: "--compressor bf16"
};

// A coding (codings/) with its options: how a tensor is cut into blocks and how each of them
// travels. It keeps nothing and sends nothing; the kernels code by the blocks' formats.
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
  virtual std::optional<double> contraction() const = 0;
  // None: it has values for all that there are.
  virtual std::optional<Clamp> clamp() const = 0;
  // What is not sent follows from the message and one number (kernels.h: Residual::sent).
  virtual bool keeps_messages() const = 0;
  // Known from the shape alone.
  std::int64_t payload_bytes(std::int64_t count, at::ScalarType dtype) const;
};

// Null where there is nothing to code slice by slice: for uncompressed values, and for compressors
// that have a reducer of their own. Throws `UsageError` for options that cannot be.
std::unique_ptr<Codec> make_codec(const CodecOptions& options);

// Of slices that go uncompressed.
std::unique_ptr<Codec> make_uncompressed_codec();

}  // namespace thinwire
