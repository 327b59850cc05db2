#include "collectives/compression/reducer/dense_message.h"

#include <ATen/ops/empty.h>

#include "collectives/compression/exchange/layout.h"

namespace thinwire {
namespace {

char* place(const at::Tensor& tensor, std::int64_t element) {
  return static_cast<char*>(tensor.data_ptr()) +
         element * static_cast<std::int64_t>(tensor.element_size());
}

}  // namespace

at::Tensor DenseMessage::pack(const Bucket& bucket, Queue& queue) {
  const auto width = static_cast<std::int64_t>(bucket.gradient.element_size());
  for (const Slice& slice : bucket.slices) {
    if (!slice.frozen) continue;
    queue.fill(place(bucket.gradient, slice.offset), 0,
               static_cast<std::size_t>(slice.numel * width));
  }
  runs_ = live_runs(bucket);
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
