#include "collectives/compression/reducer/tracker_renewal.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

constexpr std::int64_t kBlock = 1024;  // values; of a size that suits a GPU

// to := from, `count` elements from the given ones on.
void copy(Queue& queue, const at::Tensor& to, std::int64_t to_begin, const at::Tensor& from,
          std::int64_t from_begin, std::int64_t count) {
  const auto width = static_cast<std::int64_t>(to.element_size());
  queue.copy(static_cast<char*>(to.data_ptr()) + to_begin * width,
             static_cast<const char*>(from.const_data_ptr()) + from_begin * width,
             static_cast<std::size_t>(count * width));
}

Range common(Range a, Range b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

}  // namespace

void TrackerRenewal::renew(const Bucket& bucket, const std::vector<Chunk>& chunks,
                           const EControlState& state, Communicator& communicator,
                           std::int64_t step, const ReducerDevice& device, FiniteFlag& flag) {
  pieces_.clear();
  if (communicator.size() == 1) return;
  std::int64_t count = 0;
  std::vector<Block> blocks;
  const auto add = [&](std::size_t slice, Range range) {
    if (range.count() == 0) return;
    pieces_.push_back({.slice = slice, .range = range, .place = count});
    for (std::int64_t done = 0; done < range.count(); done += kBlock) {
      blocks.push_back({.begin = count + done,
                        .count = static_cast<std::int32_t>(std::min(kBlock, range.count() - done)),
                        .slice = static_cast<std::int32_t>(slice)});
    }
    count += range.count();
  };
  const Range renewed = renewed_part(bucket, step);
  for (const Chunk& chunk : chunks) {
    for (const Piece& piece : chunk.pieces) {
      add(piece.slice, common({piece.begin, piece.begin + piece.live}, renewed));
    }
  }
  if (count == 0) return;

  Queue& queue = *device.queue;
  const auto options = bucket.gradient.options();
  if (!message_.defined() || message_.numel() != count) {
    message_ = at::empty({count}, options);
    before_ = at::empty({count}, options);
  }
  for (const RenewedPiece& piece : pieces_) {
    copy(queue, message_, piece.place, state.tracker, piece.range.begin, piece.range.count());
  }
  communicator.all_reduce(message_, ReduceOp::sum)->wait();
  table_.fill(blocks, bucket.gradient, queue);
  with_type(bucket.gradient.scalar_type(), [&]<typename T>(T) {
    device.kernels<T>().mean_and_check({.blocks = table_.data(),
                                        .block_count = table_.size(),
                                        .gradient = message_.data_ptr<T>(),
                                        .ranks = communicator.size(),
                                        .flag = flag.data()},
                                       queue.executor());
  });
  const auto [mean, part] = mean_of_trackers(bucket, state);
  for (const RenewedPiece& piece : pieces_) {
    const Range own = common(piece.range, part);
    if (own.count() == 0) continue;
    const std::int64_t place = piece.place + own.begin - piece.range.begin;
    copy(queue, before_, place, mean, own.begin - part.begin, own.count());
    copy(queue, mean, own.begin - part.begin, message_, place, own.count());
  }
}

void TrackerRenewal::put_back(const RenewedPiece& piece, const Bucket& bucket,
                              const EControlState& state, Queue& queue) {
  const auto [mean, part] = mean_of_trackers(bucket, state);
  const Range own = common(piece.range, part);
  if (own.count() == 0) return;
  copy(queue, mean, own.begin - part.begin, before_, piece.place + own.begin - piece.range.begin,
       own.count());
}

void TrackerRenewal::commit(const Bucket& bucket, const EControlState& state, Queue& queue) {
  for (const RenewedPiece& piece : pieces_) {
    if (bucket.slices[piece.slice].absent) put_back(piece, bucket, state, queue);
  }
  pieces_.clear();
}

void TrackerRenewal::rollback(const Bucket& bucket, const EControlState& state, Queue& queue) {
  for (const RenewedPiece& piece : pieces_) put_back(piece, bucket, state, queue);
  pieces_.clear();
}

}  // namespace thinwire
