// One bit per value and one scale per block.
#pragma once

#include "collectives/compression/codec/codec.h"

namespace thinwire {

// C(x) = scale sign(x) per block of `block` values, sign(0) = +1. With rho = |x|_1 / (sqrt(d)
// |x|_2)
//   l1   scale mean|x|: contractive, |x - C(x)|^2 = (1 - rho^2) |x|^2
//   rms  scale sqrt(mean x^2), that of DeepSpeed's 1-bit Adam: |C(x)| = |x| and
//        |x - C(x)|^2 = 2 (1 - rho) |x|^2, which is more than |x|^2 for rho < 1/2. Squares that
//        are not normal numbers lose bits.
//
// Payload per block: the scale in the values' type, then one bit per value, least significant bit
// first, padded with zero bits to a byte. Only the block's own values enter its scale. A block
// whose scale is zero or denormal decodes to exact zeros. The sum of |x| or x^2 is formed in 32
// lanes and a butterfly, so that its bits do not depend on the machine.
class SignCodec final : public Codec {
 public:
  explicit SignCodec(std::int64_t block, SignScale scale = SignScale::l1)
      : block_(block), scale_(scale) {}

  std::string describe() const override;
  std::int64_t block() const override { return block_; }
  Format format(std::int64_t count) const override;

 private:
  std::int64_t block_;
  SignScale scale_;
};

}  // namespace thinwire
