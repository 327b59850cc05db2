// 16 bits per value.
#pragma once

#include "collectives/compression/codec/codec.h"
#include "collectives/compression/options.h"

namespace thinwire {

// Values as IEEE half or bfloat16, rounded to nearest with ties to even; a double becomes a float
// first. Finite values beyond the largest finite one become it, denormals are kept, an infinity
// stays, a NaN becomes the positive quiet one (0x7e00, 0x7fc0). A value decodes on its own: the
// block only says where tensors may be cut.
class CastCodec final : public Codec {
 public:
  explicit CastCodec(const Cast& options) : half_(options.half) {}

  std::string describe() const override;
  std::int64_t block() const override { return 1024; }
  Format format(std::int64_t count) const override;

 private:
  Half half_;
};

}  // namespace thinwire
