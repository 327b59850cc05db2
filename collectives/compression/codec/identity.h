// The values themselves: exact, for tensors that are not worth coding.
#pragma once

#include "collectives/compression/codec/codec.h"

namespace thinwire {

class IdentityCodec final : public Codec {
 public:
  std::string describe() const override { return "uncompressed"; }
  std::int64_t block() const override { return 1; }
  Format format(std::int64_t count) const override;
};

}  // namespace thinwire
