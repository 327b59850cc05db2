// The flat state that an elementwise optimizer keeps beside the weights, and the view of a bucket
// with which it is updated.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "collectives/compression/reducer/coded_gradient.h"
#include "collectives/queue_table.h"
#include "optimizers/groups.h"
#include "optimizers/kernels/kernels.h"
#include "optimizers/optimizer.h"

namespace thinwire {

// What one update of a bucket, or of a part of it, reads and writes; no two overlap.
template <typename T>
struct BucketView {
  const StepSlice* slices;  // the slices that do not rest, in the memory of the queue
  std::int64_t slice_count;
  std::int64_t numel;
  T* weights;  // the fp32 master copy where the parameters have 16 bits
  const T* gradient;
  std::array<T*, 3> state;  // in the order of `kinds`; null beyond them
};

// Flat zero-initialised tensors, one per bucket and kind, with the layout of the bucket's weights
// and the dtype of its gradient: float, or double where the weights are double. For 16-bit weights
// it also keeps an fp32 copy of kind "master", from which they are rounded after every update; it
// is taken at construction, so the weights must hold their initial values by then.
class SliceState {
 public:
  static constexpr std::size_t max_kinds = 3;

  // `buckets[i].index` is i. Groups are looked up here, once: `rules` over `weight_decay` and an
  // lr_scale of 1. Throws `UsageError` unless weights and gradient are of a supported dtype and
  // where `queue` can work on them.
  SliceState(std::span<const Bucket> buckets, const GroupRules& rules, double weight_decay,
             std::vector<std::string> kinds, const Queue& queue);

  // Calls `update` with the bucket's BucketView<float> or BucketView<double>; where the gradient is
  // coded, with one view after another of parts of the bucket. Different buckets may be updated at
  // the same time.
  template <typename Update>
  void update(Bucket& bucket, Queue& queue, const Update& update);

  // Every slice's state, shaped as the parameter, named "<kind>/<parameter>".
  void visit(StateVisitor& visitor);

 private:
  struct BucketState {
    std::vector<Slice> slices;
    std::vector<ParameterGroup> groups;  // one per slice
    std::vector<at::Tensor> tensors;     // one per kind
    at::Tensor master;                   // undefined unless the weights have 16 bits
    std::vector<bool> resting;           // as the table knows them
    QueueTable<StepSlice> table;
  };

  BucketState& of(const Bucket& bucket);
  static void fill_table(const Bucket& bucket, BucketState& own, Queue& queue);
  static void round_from_master(Bucket& bucket, const at::Tensor& master);
  static StepSlice step_slice(const BucketState& own, std::size_t slice);
  template <typename T>
  static BucketView<T> view(Bucket& bucket, BucketState& own);
  template <typename T, typename Update>
  static void update_as(Bucket& bucket, BucketState& own, Queue& queue, const Update& update);

  std::vector<std::string> kinds_;
  std::vector<BucketState> buckets_;
};

template <typename Update>
void SliceState::update(Bucket& bucket, Queue& queue, const Update& update) {
  BucketState& own = of(bucket);
  if (bucket.gradient.scalar_type() == at::kDouble) {
    update_as<double>(bucket, own, queue, update);
  } else {
    update_as<float>(bucket, own, queue, update);
  }
  if (own.master.defined()) round_from_master(bucket, own.master);
}

template <typename T, typename Update>
void SliceState::update_as(Bucket& bucket, BucketState& own, Queue& queue, const Update& update) {
  fill_table(bucket, own, queue);
  const BucketView<T> whole = view<T>(bucket, own);
  if (!bucket.coded) {
    update(whole);
    return;
  }
  for_each_tile<T>(bucket, [&](const DecodedTile<T>& tile) {
    StepSlice slice = step_slice(own, static_cast<std::size_t>(tile.slice));
    slice.offset = 0;
    slice.numel = tile.count;
    BucketView<T> part{&slice, 1, tile.count, whole.weights + tile.begin, tile.values, {}};
    for (std::size_t k = 0; k < own.tensors.size(); ++k) {
      part.state[k] = whole.state[k] + tile.begin;
    }
    update(part);
  });
}

template <typename T>
BucketView<T> SliceState::view(Bucket& bucket, BucketState& own) {
  at::Tensor& weights = own.master.defined() ? own.master : bucket.weights;
  BucketView<T> view{own.table.data(),
                     own.table.size(),
                     bucket.numel(),
                     weights.mutable_data_ptr<T>(),
                     bucket.gradient.const_data_ptr<T>(),
                     {}};
  for (std::size_t k = 0; k < own.tensors.size(); ++k) {
    view.state[k] = own.tensors[k].mutable_data_ptr<T>();
  }
  return view;
}

}  // namespace thinwire
