#include "collectives/compression/reducer/gradient_average.h"

#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/reducer/absent.h"
#include "collectives/compression/reducer/live_order.h"

namespace thinwire {
namespace {

constexpr std::int64_t kBlock = 1024;  // values; of a size that suits a GPU

}  // namespace

GradientAverage::GradientAverage(const GradientReducer& reducer, double momentum,
                                 const ReducerDevice& device)
    : reducer_(reducer), momentum_(momentum), device_(device) {
  check(momentum > 0 && momentum < 1, "momentum is between 0 and 1");
}

GradientAverage::BucketState& GradientAverage::state_of(const Bucket& bucket) {
  const auto found = states_.find(bucket.index);
  check(found != states_.end(), "the bucket was prepared");
  return found->second;
}

void GradientAverage::prepare(const Bucket& bucket) {
  BucketState here;
  for (const SlicePlan& slice : reducer_.plan(bucket)) here.compressed.push_back(slice.compressed);
  here.momentum = at::zeros_like(bucket.gradient);
  here.next = at::zeros_like(bucket.gradient);
  states_.insert_or_assign(bucket.index, std::move(here));
}

void GradientAverage::relayout(const Bucket& bucket) {
  adopt_layout(bucket, state_of(bucket));
}

void GradientAverage::adopt_layout(const Bucket& bucket, BucketState& here) {
  if (here.table.filled() && here.layout.is(bucket.layout)) return;
  here.layout = bucket.layout;
  clear_gone(bucket, here.momentum, {0, bucket.numel()}, *device_.queue);
  std::vector<Block> table;
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    if (!here.compressed[i]) continue;
    const Slice& slice = bucket.slices[i];
    const auto add = [&](std::int64_t begin, std::int64_t end, Coding coding) {
      for (std::int64_t done = begin; done < end; done += kBlock) {
        table.push_back({.begin = slice.offset + done,
                         .count = static_cast<std::int32_t>(std::min(kBlock, end - done)),
                         .slice = static_cast<std::int32_t>(i),
                         .format = {.coding = coding}});
      }
    };
    std::int64_t begin = 0;
    for (const Range& live : live_ranges(bucket, i)) {
      add(begin, live.begin, Coding::held);
      add(live.begin, live.end, Coding::raw);
      begin = live.end;
    }
    add(begin, slice.numel, Coding::held);
  }
  here.table.fill(table, bucket.gradient, *device_.queue);
}

void GradientAverage::before_reduce(Bucket& bucket, const StepContext& step) {
  BucketState& here = state_of(bucket);
  adopt_layout(bucket, here);
  const double keep = step.transmission == Transmission::dense ? 0 : momentum_;
  with_type(bucket.gradient.scalar_type(), [&]<typename T>(T) {
    device_.kernels<T>().average({.blocks = here.table.data(),
                                  .block_count = here.table.size(),
                                  .gradient = bucket.gradient.data_ptr<T>(),
                                  .momentum = here.momentum.const_data_ptr<T>(),
                                  .momentum_next = here.next.data_ptr<T>(),
                                  .keep = static_cast<T>(keep),
                                  .share = static_cast<T>(1 - keep)},
                                 device_.queue->executor());
  });
}

void GradientAverage::commit(const Bucket& bucket) {
  BucketState& here = state_of(bucket);
  hold_absent(bucket, {0, bucket.numel()}, here.next, here.momentum, *device_.queue);
  std::swap(here.momentum, here.next);
}

void GradientAverage::visit(const Bucket& bucket, StateVisitor& visitor) {
  BucketState& here = state_of(bucket);
  adopt_layout(bucket, here);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    if (!here.compressed[i]) continue;
    const Slice& slice = bucket.slices[i];
    visitor.tensor(
        {.name = "averaged_gradient/" + slice.name,
         .kind = StateKind::averaged,
         .tensor = here.momentum.narrow(0, slice.offset, slice.numel).view(slice.shape)});
  }
}

}  // namespace thinwire
