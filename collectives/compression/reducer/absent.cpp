#include "collectives/compression/reducer/absent.h"

namespace thinwire {

bool has_absent(const Bucket& bucket) {
  return std::ranges::any_of(bucket.slices, &Slice::absent);
}

void hold_absent(const Bucket& bucket, Range part, const at::Tensor& next, const at::Tensor& now,
                 Queue& queue) {
  if (!now.defined()) return;
  const auto width = static_cast<std::int64_t>(now.element_size());
  for (const Slice& slice : bucket.slices) {
    const std::int64_t begin = std::max(slice.offset, part.begin);
    const std::int64_t end = std::min(slice.end(), part.end);
    if (!slice.absent || begin >= end) continue;
    const std::int64_t place = (begin - part.begin) * width;
    queue.copy(static_cast<char*>(next.data_ptr()) + place,
               static_cast<const char*>(now.const_data_ptr()) + place,
               static_cast<std::size_t>((end - begin) * width));
  }
}

void clear_absent(const Bucket& bucket, Queue& queue) {
  const auto width = static_cast<std::int64_t>(bucket.gradient.element_size());
  for (const Slice& slice : bucket.slices) {
    if (!slice.absent) continue;
    queue.fill(static_cast<char*>(bucket.gradient.data_ptr()) + slice.offset * width, 0,
               static_cast<std::size_t>(slice.numel * width));
  }
}

}  // namespace thinwire
