#include "collectives/compression/exchange/layout.h"

#include <algorithm>

#include "collectives/base/error.h"

namespace thinwire {

Range Chunk::range() const {
  if (pieces.empty()) return {};
  return {pieces.front().begin, pieces.back().begin + pieces.back().count};
}

std::vector<Chunk> cut_into_chunks(const Bucket& bucket, const std::vector<const Codec*>& codecs,
                                   int size) {
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
      chunks[owner].pieces.push_back({i, slice.offset + done, count, codecs[i]});
      placed += codecs[i]->payload_bytes(count, dtype);
      done += count;
    }
  }
  return chunks;
}

std::vector<Range> live_runs(const Bucket& bucket) {
  if (std::ranges::none_of(bucket.slices, &Slice::frozen)) return {{0, bucket.numel()}};
  std::vector<Range> runs;
  bool goes_on = false;
  for (const Slice& slice : bucket.slices) {
    if (!slice.frozen && goes_on) runs.back().end = slice.end();
    if (!slice.frozen && !goes_on) runs.push_back({slice.offset, slice.end()});
    goes_on = !slice.frozen;
  }
  return runs;
}

std::int64_t payload_bytes(const Bucket& bucket, const Chunk& chunk) {
  std::int64_t bytes = 0;
  for (const Piece& piece : chunk.pieces) {
    if (bucket.slices[piece.slice].frozen) continue;
    bytes += piece.codec->payload_bytes(piece.count, bucket.gradient.scalar_type());
  }
  return bytes;
}

void for_each_payload(const Bucket& bucket, const Chunk& chunk, const at::Tensor& packed,
                      const std::function<void(const Piece&, at::Tensor)>& body) {
  std::int64_t offset = 0;
  for (const Piece& piece : chunk.pieces) {
    if (bucket.slices[piece.slice].frozen) continue;
    const std::int64_t bytes =
        piece.codec->payload_bytes(piece.count, bucket.gradient.scalar_type());
    body(piece, packed.narrow(0, offset, bytes));
    offset += bytes;
  }
  check_equal(offset, packed.numel(), "payload of a chunk");
}

}  // namespace thinwire
