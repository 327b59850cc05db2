#include "collectives/compression/reducer/owners.h"

#include <algorithm>

#include "collectives/base/error.h"

namespace thinwire {

Range Chunk::range() const {
  if (pieces.empty()) return {};
  return {pieces.front().begin, pieces.back().begin + pieces.back().count};
}

std::vector<Chunk> cut_into_chunks(const Bucket& bucket, const CodecOfSlice& codecs, int size) {
  check_equal(codecs.size(), bucket.slices.size(), "one codec per slice");
  const auto dtype = bucket.gradient.scalar_type();
  std::int64_t total = 0;
  for (std::size_t i = 0; i < codecs.size(); ++i) {
    total += codecs[i]->payload_bytes(bucket.slices[i].numel, dtype);
  }

  std::vector<Chunk> chunks(static_cast<std::size_t>(size));
  std::size_t owner = 0;
  std::int64_t placed = 0;  // bytes
  for (std::size_t i = 0; i < codecs.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    const std::int64_t block = codecs[i]->block();
    const std::int64_t block_bytes = codecs[i]->payload_bytes(block, dtype);
    std::int64_t done = 0;  // elements of this slice
    while (done < slice.numel) {
      // The last owner takes the rest; the others as many blocks as bring them nearest to their
      // end.
      std::int64_t count = slice.numel - done;
      if (owner + 1 < chunks.size()) {
        const std::int64_t end = total * static_cast<std::int64_t>(owner + 1) / size;
        const std::int64_t blocks = (end - placed + block_bytes / 2) / block_bytes;
        count = std::min(count, std::max<std::int64_t>(0, blocks) * block);
      }
      if (count == 0) {
        ++owner;
        continue;
      }
      chunks[owner].pieces.push_back({i, slice.offset + done, count, count});
      placed += codecs[i]->payload_bytes(count, dtype);
      done += count;
    }
  }
  return chunks;
}

std::vector<Chunk> one_chunk(const Bucket& bucket) {
  std::vector<Chunk> chunks(1);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (slice.numel > 0) {
      chunks[0].pieces.push_back({i, slice.offset, slice.numel, slice.numel});
    }
  }
  return chunks;
}

void count_live(const Bucket& bucket, std::vector<Chunk>& chunks) {
  for (Chunk& chunk : chunks) {
    for (Piece& piece : chunk.pieces) {
      piece.live = bucket.layout.rests(piece.slice) ? 0 : piece.count;
      if (!bucket.layout.is_partial(piece.slice)) continue;
      const Slice& slice = bucket.slices[piece.slice];
      const Range mine{piece.begin - slice.offset, piece.begin + piece.count - slice.offset};
      piece.live = 0;
      for (const Range& range : bucket.layout.of(piece.slice).live.ranges(slice.numel)) {
        piece.live += std::max<std::int64_t>(
            0, std::min(range.end, mine.end) - std::max(range.begin, mine.begin));
      }
    }
  }
}

std::vector<Range> live_runs(const Bucket& bucket, const std::vector<Chunk>& chunks) {
  std::vector<Range> runs;
  bool is_whole = true;
  bool goes_on = false;
  for (const Chunk& chunk : chunks) {
    for (const Piece& piece : chunk.pieces) {
      const std::int64_t end = piece.begin + piece.live;
      if (piece.live > 0 && goes_on) runs.back().end = end;
      if (piece.live > 0 && !goes_on) runs.push_back({piece.begin, end});
      goes_on = piece.live == piece.count;
      is_whole = is_whole && goes_on;
    }
  }
  if (is_whole) return {{0, bucket.numel()}};
  return runs;
}

}  // namespace thinwire
