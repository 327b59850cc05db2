#include "collectives/compression/reducer/live_order.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

// Calls `body` with every range of the slice's elements that are not live, within `part` of the
// bucket, as elements from the bucket's start.
template <typename Body>
void for_each_inactive(const Bucket& bucket, std::size_t i, Range part, const Body& body) {
  const Slice& slice = bucket.slices[i];
  const auto within = [&](std::int64_t begin, std::int64_t end) {
    begin = std::max(begin + slice.offset, part.begin);
    end = std::min(end + slice.offset, part.end);
    if (begin < end) body(begin, end - begin);
  };
  std::int64_t begin = 0;
  for (const Range& range : bucket.layout.of(i).live.ranges(slice.numel)) {
    within(begin, range.begin);
    begin = range.end;
  }
  within(begin, slice.numel);
}

}  // namespace

void LiveOrder::set(const Bucket& bucket, const std::vector<Chunk>& chunks, Queue& queue) {
  std::vector<PermutedPart> parts;
  std::vector<std::int32_t> order;
  for (const Chunk& chunk : chunks) {
    for (const Piece& piece : chunk.pieces) {
      if (!bucket.layout.is_partial(piece.slice)) continue;
      check(piece.count <= std::numeric_limits<std::int32_t>::max(),
            "a partly live part of a slice has less than 2^31 elements");
      const auto first = static_cast<std::int64_t>(order.size());
      parts.push_back({.begin = piece.begin, .count = piece.count, .first = first});
      const Slice& slice = bucket.slices[piece.slice];
      std::vector<std::int32_t> others;
      std::int64_t i = piece.begin - slice.offset;
      const std::int64_t end = i + piece.count;
      const auto place = [&] {
        return static_cast<std::int32_t>(i - (piece.begin - slice.offset));
      };
      for (const Range& range : bucket.layout.of(piece.slice).live.ranges(slice.numel)) {
        for (; i < std::min(range.begin, end); ++i) others.push_back(place());
        for (; i < std::min(range.end, end); ++i) order.push_back(place());
      }
      for (; i < end; ++i) others.push_back(place());
      order.insert(order.end(), others.begin(), others.end());
    }
  }
  parts_.fill(parts, bucket.gradient, queue);
  order_.fill(order, bucket.gradient, queue);
  const auto count = static_cast<std::int64_t>(order.size());
  scratch_before_ = std::exchange(scratch_, at::empty({count}, bucket.gradient.options()));
}

template <typename T>
PermuteArgs<T> LiveOrder::arguments(const at::Tensor& values, Range part) {
  const auto all = parts_.entries();
  const auto first =
      std::ranges::lower_bound(all, part.begin, {}, &PermutedPart::begin) - all.begin();
  const auto last = std::ranges::lower_bound(all, part.end, {}, &PermutedPart::begin) - all.begin();
  return {.parts = parts_.data() + first,
          .part_count = last - first,
          .order = order_.data(),
          .values = values.data_ptr<T>() - part.begin,
          .scratch = scratch_.data_ptr<T>()};
}

void LiveOrder::apply(const at::Tensor& values, Range part, const ReducerDevice& device) {
  if (is_natural() || !values.defined()) return;
  with_type(values.scalar_type(), [&]<typename T>(T) {
    device.permute<T>().apply(arguments<T>(values, part), device.queue->executor());
  });
}

void LiveOrder::revert(const at::Tensor& values, Range part, const ReducerDevice& device) {
  if (is_natural() || !values.defined()) return;
  with_type(values.scalar_type(), [&]<typename T>(T) {
    device.permute<T>().revert(arguments<T>(values, part), device.queue->executor());
  });
}

void clear_gone(const Bucket& bucket, const at::Tensor& values, Range part, Queue& queue) {
  if (!values.defined()) return;
  const auto width = static_cast<std::int64_t>(values.element_size());
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    if (bucket.layout.of(i).inactive != Inactive::gone) continue;
    for_each_inactive(bucket, i, part, [&](std::int64_t begin, std::int64_t count) {
      queue.fill(static_cast<char*>(values.data_ptr()) + (begin - part.begin) * width, 0,
                 static_cast<std::size_t>(count * width));
    });
  }
}

}  // namespace thinwire
