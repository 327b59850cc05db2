#include "collectives/compression/codec/identity.h"

namespace thinwire {

Format IdentityCodec::format(std::int64_t) const {
  return {.coding = Coding::raw};
}

}  // namespace thinwire
