// How a bucket is cut into the chunks that ranks own.
#pragma once

#include <functional>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/codec/codec.h"
#include "collectives/compression/feedback/feedback.h"

namespace thinwire {

// A part of one slice, coded by one codec.
struct Piece {
  std::size_t slice = 0;   // index into the bucket's slices
  std::int64_t begin = 0;  // elements from the bucket's start
  std::int64_t count = 0;
  const Codec* codec = nullptr;
};

// What one rank owns: consecutive pieces. Empty where there are more ranks than blocks.
struct Chunk {
  std::vector<Piece> pieces;
  // From the first piece's begin to the last one's end.
  Range range() const;
};

// Cuts the bucket into `size` chunks of about equal payload. Chunks end at slice or block
// boundaries, so the parts code like the whole. `codecs` has one entry per slice.
std::vector<Chunk> cut_into_chunks(const Bucket& bucket, const std::vector<const Codec*>& codecs,
                                   int size);

// What a step that goes uncompressed sends: all of the bucket where nothing is frozen, else the
// runs of neighbouring slices that are not, with the gaps in them.
std::vector<Range> live_runs(const Bucket& bucket);

// Payload bytes of the chunk's pieces that are not frozen.
std::int64_t payload_bytes(const Bucket& bucket, const Chunk& chunk);

// Calls `body(piece, payload)` for each piece of `chunk` that is not frozen, in order, with its
// part of the chunk's packed payload.
void for_each_payload(const Bucket& bucket, const Chunk& chunk, const at::Tensor& packed,
                      const std::function<void(const Piece&, at::Tensor)>& body);

}  // namespace thinwire
