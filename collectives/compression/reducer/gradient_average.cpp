#include "collectives/compression/reducer/gradient_average.h"

#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/reducer/absent.h"

namespace thinwire {
namespace {

constexpr std::int64_t kBlock = 1024;  // values; of a size that suits a GPU

}  // namespace

GradientAverage::GradientAverage(const GradientReducer& reducer, double momentum,
                                 const ReducerLaunch& launch)
    : reducer_(reducer), momentum_(momentum), launch_(launch) {
  check(momentum > 0 && momentum < 1, "momentum is between 0 and 1");
}

GradientAverage::Path& GradientAverage::path(const Bucket& bucket) {
  const auto found = paths_.find(bucket.index);
  check(found != paths_.end(), "the bucket was prepared");
  return found->second;
}

void GradientAverage::prepare(const Bucket& bucket) {
  Path here;
  for (const SlicePlan& slice : reducer_.plan(bucket)) here.compressed.push_back(slice.compressed);
  here.momentum = at::zeros_like(bucket.gradient);
  here.next = at::zeros_like(bucket.gradient);
  paths_.insert_or_assign(bucket.index, std::move(here));
}

void GradientAverage::lay_out(const Bucket& bucket, Path& here) {
  std::vector<bool> frozen;
  for (const Slice& slice : bucket.slices) frozen.push_back(slice.frozen);
  if (here.table.filled() && frozen == here.frozen) return;
  here.frozen = frozen;
  std::vector<Block> table;
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    if (!here.compressed[i]) continue;
    const Slice& slice = bucket.slices[i];
    for (std::int64_t done = 0; done < slice.numel; done += kBlock) {
      Block block;
      block.begin = slice.offset + done;
      block.count = static_cast<std::int32_t>(std::min(kBlock, slice.numel - done));
      block.slice = static_cast<std::int32_t>(i);
      if (frozen[i]) block.format.coding = Coding::held;
      table.push_back(block);
    }
  }
  here.table.fill(table, bucket.gradient, *launch_.queue);
}

void GradientAverage::before_reduce(Bucket& bucket, const StepContext& step) {
  Path& here = path(bucket);
  lay_out(bucket, here);
  const double keep = step.transmission == Transmission::dense ? 0 : momentum_;
  with_type(bucket.gradient.scalar_type(), [&]<typename T>(T) {
    launch_.kernels<T>().average({.blocks = here.table.data(),
                                  .block_count = here.table.size(),
                                  .gradient = bucket.gradient.data_ptr<T>(),
                                  .momentum = here.momentum.const_data_ptr<T>(),
                                  .momentum_next = here.next.data_ptr<T>(),
                                  .keep = static_cast<T>(keep),
                                  .share = static_cast<T>(1 - keep)},
                                 launch_.queue->stream());
  });
}

void GradientAverage::commit(const Bucket& bucket) {
  Path& here = path(bucket);
  hold_absent(bucket, {0, bucket.numel()}, here.next, here.momentum, *launch_.queue);
  std::swap(here.momentum, here.next);
}

void GradientAverage::visit(const Bucket& bucket, StateVisitor& visitor) {
  const Path& here = path(bucket);
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
