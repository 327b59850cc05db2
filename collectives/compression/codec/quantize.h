// A few bits per value and one or two numbers per block.
#pragma once

#include "collectives/compression/codec/codec.h"
#include "collectives/compression/options.h"

namespace thinwire {

// Every block is rounded to a grid of its own (Markov et al., CGX, 2022); the payload is defined in
// kernels/format.h. In T, the values' type, with top the highest level:
//
//   max_min    least = min x + 0, unit = ((max x + 0) - least) / T(top), top = 2^bits - 1
//              level = floor(((x - least) * inverse) + r), decoded: least + unit * T(level)
//   symmetric  unit = max|x| / T(m), m = 2^(bits - 1) - 1, top = 2 m
//              level = floor(((x * inverse) + T(m)) + r), decoded: unit * (T(level) - T(m))
//
// with inverse = T(1) / unit, level clamped to 0 ... top, and r = 1/2 (nearest) or the draw of
// kernels.h (stochastic). Nearest: |error| <= unit / 2. Stochastic: unbiased, |error| < unit. (Both
// up to the rounding of T.)
//
// A unit below the smallest normal number is 0: all stored levels are 0 then, under symmetric too,
// and a least value whose magnitude is below it becomes +0. A block with a NaN or an infinity, or
// whose unit or whose highest value (least + unit * T(top), unit * T(m)) overflows, has NaN for
// unit and least value, and levels 0.
class QuantizeCodec final : public Codec {
 public:
  // Throws `UsageError` for bits or a block that cannot be.
  explicit QuantizeCodec(const Quantize& options);

  std::string describe() const override;
  std::int64_t block() const override { return options_.block; }
  Format format(std::int64_t count) const override;

 private:
  Quantize options_;
  Grid grid_;
};

}  // namespace thinwire
