// The payload of the parts that owners have.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "collectives/base/error.h"
#include "collectives/compression/reducer/owners.h"

namespace thinwire::reference {

// Payload bytes of the chunk's pieces that do not rest.
inline std::int64_t payload_bytes(const Bucket& bucket, const Chunk& chunk,
                                  const CodecOfSlice& codecs) {
  std::int64_t bytes = 0;
  for (const Piece& piece : chunk.pieces) {
    if (bucket.layout.rests(piece.slice)) continue;
    check(!bucket.layout.is_partial(piece.slice), "the plain code knows whole slices only");
    bytes += codecs[piece.slice]->payload_bytes(piece.count, bucket.gradient.scalar_type());
  }
  return bytes;
}

// Calls `body(piece, codec, payload)` for each piece of `chunk` that does not rest, in order, with
// its part of the chunk's packed payload.
template <typename Body>
void for_each_payload(const Bucket& bucket, const Chunk& chunk, const CodecOfSlice& codecs,
                      const at::Tensor& packed, const Body& body) {
  std::int64_t offset = 0;
  for (const Piece& piece : chunk.pieces) {
    if (bucket.layout.rests(piece.slice)) continue;
    const Codec& codec = *codecs[piece.slice];
    const std::int64_t bytes = codec.payload_bytes(piece.count, bucket.gradient.scalar_type());
    body(piece, codec, packed.narrow(0, offset, bytes));
    offset += bytes;
  }
  check_equal(offset, packed.numel(), "payload of a chunk");
}

}  // namespace thinwire::reference
