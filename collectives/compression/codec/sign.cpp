#include "collectives/compression/codec/sign.h"

#include <fmt/format.h>

namespace thinwire {

std::string SignCodec::describe() const {
  return fmt::format("sign, one {}scale per {} values", scale_ == SignScale::rms ? "rms " : "",
                     block_);
}

Format SignCodec::format(std::int64_t) const {
  return {.coding = Coding::sign, .scale = scale_};
}

}  // namespace thinwire
