#include "collectives/compression/reducer/dense_message.h"

#include <ATen/ops/empty.h>

namespace thinwire {
namespace {

char* place(const at::Tensor& tensor, std::int64_t element) {
  return static_cast<char*>(tensor.data_ptr()) +
         element * static_cast<std::int64_t>(tensor.element_size());
}

}  // namespace

void clear_inactive(const at::Tensor& values, const std::vector<Chunk>& chunks, Queue& queue) {
  const auto width = static_cast<std::int64_t>(values.element_size());
  for (const Chunk& chunk : chunks) {
    for (const Piece& piece : chunk.pieces) {
      if (piece.live == piece.count) continue;
      queue.fill(place(values, piece.begin + piece.live), 0,
                 static_cast<std::size_t>((piece.count - piece.live) * width));
    }
  }
}

at::Tensor DenseMessage::pack(const Bucket& bucket, const std::vector<Chunk>& chunks,
                              Queue& queue) {
  const auto width = static_cast<std::int64_t>(bucket.gradient.element_size());
  clear_inactive(bucket.gradient, chunks, queue);
  runs_ = live_runs(bucket, chunks);
  std::int64_t count = 0;
  for (const Range& run : runs_) count += run.count();
  if (runs_.size() < 2) return bucket.gradient.narrow(0, runs_.empty() ? 0 : runs_[0].begin, count);
  if (!packed_.defined() || packed_.numel() != count) {
    packed_ = at::empty({count}, bucket.gradient.options());
  }
  std::int64_t to = 0;
  for (const Range& run : runs_) {
    queue.copy(place(packed_, to), place(bucket.gradient, run.begin),
               static_cast<std::size_t>(run.count() * width));
    to += run.count();
  }
  return packed_;
}

void DenseMessage::unpack(const Bucket& bucket, Queue& queue) {
  if (runs_.size() < 2) return;
  const auto width = static_cast<std::int64_t>(bucket.gradient.element_size());
  std::int64_t from = 0;
  for (const Range& run : runs_) {
    queue.copy(place(bucket.gradient, run.begin), place(packed_, from),
               static_cast<std::size_t>(run.count() * width));
    from += run.count();
  }
}

}  // namespace thinwire
