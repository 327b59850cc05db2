#include "collectives/compression/codec/codec.h"

#include "collectives/compression/codec/typed.h"

namespace thinwire {

std::int64_t Codec::payload_bytes(std::int64_t count, at::ScalarType dtype) const {
  return with_type(dtype, [&]<typename T>(T) {
    const std::int64_t whole = count / block();
    return whole * thinwire::payload_bytes<T>(format(block()), block()) +
           thinwire::payload_bytes<T>(format(count % block()), count % block());
  });
}

}  // namespace thinwire
