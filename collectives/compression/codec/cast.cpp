#include "collectives/compression/codec/cast.h"

namespace thinwire {

std::string CastCodec::describe() const {
  return half_ == Half::fp16 ? "fp16 values" : "bf16 values";
}

Format CastCodec::format(std::int64_t) const {
  return {.coding = Coding::cast, .half = half_};
}

}  // namespace thinwire
