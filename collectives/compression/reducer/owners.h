// Which rank averages which part of a bucket.
#pragma once

#include <memory>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/codec/codec.h"

namespace thinwire {

// A part of one slice that has one owner. It never moves: whatever the layout makes of the slice,
// an element stays with its owner, and so does the owner's residual of it. No block crosses a
// piece's end.
struct Piece {
  std::size_t slice = 0;   // index into the bucket's slices
  std::int64_t begin = 0;  // elements from the bucket's start
  std::int64_t count = 0;
  std::int64_t live = 0;  // of them, as the bucket's layout is now
};

// What one rank owns: consecutive pieces. Empty where there are more ranks than blocks.
struct Chunk {
  std::vector<Piece> pieces;
  // From the first piece's begin to the last one's end.
  Range range() const;
};

// The codec of each slice of a bucket.
using CodecOfSlice = std::vector<std::shared_ptr<const Codec>>;

// Cuts the bucket into `size` chunks of about equal payload, as its first layout has it. Chunks end
// where slices or blocks of that layout do.
std::vector<Chunk> cut_into_chunks(const Bucket& bucket, const CodecOfSlice& codecs, int size);

// One chunk with all of the bucket: what everybody has where nobody owns a part.
std::vector<Chunk> one_chunk(const Bucket& bucket);

// Counts what is live of each piece by the bucket's layout.
void count_live(const Bucket& bucket, std::vector<Chunk>& chunks);

// The live part of a bucket whose pieces have their live elements in front (LiveOrder): all of the
// bucket where all is live, else runs as long as possible, with the gaps between slices in them.
std::vector<Range> live_runs(const Bucket& bucket, const std::vector<Chunk>& chunks);

}  // namespace thinwire
