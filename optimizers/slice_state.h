// The flat state that an elementwise optimizer keeps beside the weights, and the view of a bucket
// with which it is updated.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "collectives/compression/undecoded.h"
#include "collectives/queue_table.h"
#include "optimizers/groups.h"
#include "optimizers/kernels/kernels.h"
#include "optimizers/optimizer.h"

namespace thinwire {

// Flat zero-initialised tensors, one per bucket and kind, with the layout of the bucket's weights
// and the dtype of its gradient: float, or double where the weights are double. For 16-bit weights
// it also keeps an fp32 copy of kind "master", from which they are rounded after every update; it
// is taken at construction, so the weights must hold their initial values by then.
class SliceState {
 public:
  // `buckets[i].index` is i. Groups are looked up here, once: `rules` over `weight_decay` and an
  // lr_scale of 1. Throws `UsageError` unless weights and gradient are of a supported dtype and
  // where `queue` can work on them.
  // `formula_of`: which of the optimizer's formulas, counted from 0, moves a slice.
  SliceState(std::span<const Bucket> buckets, const GroupRules& rules, double weight_decay,
             std::vector<std::string> kinds, const Queue& queue,
             const std::function<int(const Slice&)>& formula_of = first_formula);
  static int first_formula(const Slice&) { return 0; }

  // Calls `update` with the bucket's BucketView<float> or BucketView<double>, one for each formula;
  // where the gradient is coded, with one view after another of parts of the bucket. Different
  // buckets may be updated at the same time.
  template <typename Update>
  void update(Bucket& bucket, Queue& queue, const Update& update);

  // Before the bucket is reduced: calls `form` with a view of the slices of one formula, if there
  // are any, in which the gradient takes the place of the weights, and of the states there is the
  // first.
  template <typename Form>
  void form_quantity(Bucket& bucket, Queue& queue, int formula, const Form& form);

  // The sum over all buckets of a state of slices of one formula, element by element in double: the
  // same bits on every rank.
  double sum(std::span<const Bucket> buckets, std::size_t kind, int formula, Queue& queue) const;

  // Takes over the bucket's layout: the state of what is gone becomes zero. `update` does so too.
  void relayout(const Bucket& bucket, Queue& queue);

  // Every slice's state, shaped as the parameter, named "<kind>/<parameter>".
  void visit(StateVisitor& visitor);

 private:
  struct BucketState {
    std::vector<Slice> slices;
    std::vector<ParameterGroup> groups;         // one per slice
    std::vector<int> formulas;                  // so too
    std::vector<at::Tensor> tensors;            // one per kind
    at::Tensor master;                          // undefined unless the weights have 16 bits
    Layout layout;                              // as the table knows it
    std::vector<bool> absent;                   // so too
    std::vector<QueueTable<StepSlice>> tables;  // one per formula
  };

  BucketState& of(const Bucket& bucket);
  static void fill_tables(const Bucket& bucket, BucketState& own, Queue& queue);
  static void adopt_layout(const Bucket& bucket, BucketState& own, Queue& queue);
  static void round_from_master(Bucket& bucket, const at::Tensor& master);
  static StepSlice step_slice(const BucketState& own, std::size_t slice);
  template <typename T>
  static BucketView<T> view(Bucket& bucket, BucketState& own, std::size_t formula);
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
  fill_tables(bucket, own, queue);
  if (!bucket.undecoded) {
    for (std::size_t f = 0; f < own.tables.size(); ++f) {
      if (own.tables.size() == 1 || own.tables[f].size() > 0) update(view<T>(bucket, own, f));
    }
    return;
  }
  const BucketView<T> whole = view<T>(bucket, own, 0);
  for_each_tile<T>(bucket, queue.executor(), [&](const DecodedTile<T>& tile) {
    StepSlice slice = step_slice(own, static_cast<std::size_t>(tile.slice));
    slice.offset = 0;
    slice.numel = tile.count;
    BucketView<T> part{&slice, 1, tile.count, whole.weights + tile.begin, tile.values, {}};
    part.state_count = whole.state_count;
    part.formula = own.formulas[static_cast<std::size_t>(tile.slice)];
    for (int k = 0; k < part.state_count; ++k) part.state[k] = whole.state[k] + tile.begin;
    update(part);
  });
}

template <typename T>
BucketView<T> SliceState::view(Bucket& bucket, BucketState& own, std::size_t formula) {
  at::Tensor& weights = own.master.defined() ? own.master : bucket.weights;
  BucketView<T> view{
      own.tables[formula].data(),    own.tables[formula].size(),          bucket.numel(),
      weights.mutable_data_ptr<T>(), bucket.gradient.const_data_ptr<T>(), {}};
  for (at::Tensor& tensor : own.tensors) {
    view.state[view.state_count++] = tensor.mutable_data_ptr<T>();
  }
  view.formula = static_cast<int>(formula);
  return view;
}

template <typename Form>
void SliceState::form_quantity(Bucket& bucket, Queue& queue, int formula, const Form& form) {
  BucketState& own = of(bucket);
  fill_tables(bucket, own, queue);
  if (formula >= static_cast<int>(own.tables.size())) return;  // no slice has it
  const auto form_as = [&]<typename T>(T) {
    BucketView<T> part = view<T>(bucket, own, static_cast<std::size_t>(formula));
    part.weights = bucket.gradient.mutable_data_ptr<T>();
    part.state_count = 1;
    if (part.slice_count > 0) form(part);
  };
  if (bucket.gradient.scalar_type() == at::kDouble) {
    form_as(double{});
  } else {
    form_as(float{});
  }
}

}  // namespace thinwire
