// The flat state that an elementwise optimizer keeps beside the weights, and the walk over a
// bucket's slices in which it is used.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "collectives/bucket.h"
#include "optimizers/groups.h"
#include "optimizers/kernels/kernels.h"
#include "optimizers/optimizer.h"
#include "runtime/base/state.h"

namespace thinwire {

// What one slice's update reads and writes: `numel` elements behind each pointer, no two
// overlapping.
template <typename T>
struct SliceView {
  T* weights;  // the fp32 master copy where the parameter has 16 bits
  const T* gradient;
  std::array<T*, 3> state;  // in the order of `kinds`; null beyond them
  std::int64_t numel;
  ParameterGroup group;
};

// The slice in a kernel's table; its pointers are the view's.
template <typename T>
StepSlice step_slice(const SliceView<T>& view) {
  return {.offset = 0,
          .numel = view.numel,
          .weight_decay = view.group.weight_decay,
          .lr_scale = view.group.lr_scale};
}

// Flat zero-initialised tensors, one per bucket and kind, with the layout of the bucket's weights
// and the dtype of its gradient: float, or double where the weights are double. For 16-bit weights
// it also keeps an fp32 copy of kind "master", from which they are rounded after every update; it
// is taken at construction, so the weights must hold their initial values by then.
class SliceState {
 public:
  static constexpr std::size_t max_kinds = 3;

  // `buckets[i].index` is i. Groups are looked up here, once: `rules` over `weight_decay` and an
  // lr_scale of 1. Throws `UsageError` unless weights and gradient are of a supported dtype and on
  // the CPU.
  SliceState(std::span<const Bucket> buckets, const GroupRules& rules, double weight_decay,
             std::vector<std::string> kinds);

  // Calls `update` with the SliceView<float> or SliceView<double> of every slice that is not
  // frozen. Different buckets may be updated at the same time.
  template <typename Update>
  void for_each_slice(Bucket& bucket, const Update& update);

  // Every slice's state, shaped as the parameter, named "<kind>/<parameter>".
  void visit(StateVisitor& visitor);

 private:
  struct BucketState {
    std::vector<Slice> slices;
    std::vector<ParameterGroup> groups;  // one per slice
    std::vector<at::Tensor> tensors;     // one per kind
    at::Tensor master;                   // undefined unless the weights have 16 bits
  };

  BucketState& of(const Bucket& bucket);
  static void round_from_master(Bucket& bucket, const Slice& slice, const at::Tensor& master);
  template <typename T, typename Update>
  static void walk(Bucket& bucket, BucketState& own, const Update& update);

  std::vector<std::string> kinds_;
  std::vector<BucketState> buckets_;
};

template <typename Update>
void SliceState::for_each_slice(Bucket& bucket, const Update& update) {
  BucketState& own = of(bucket);
  if (bucket.gradient.scalar_type() == at::kDouble) {
    walk<double>(bucket, own, update);
  } else {
    walk<float>(bucket, own, update);
  }
}

template <typename T, typename Update>
void SliceState::walk(Bucket& bucket, BucketState& own, const Update& update) {
  T* weights = (own.master.defined() ? own.master : bucket.weights).mutable_data_ptr<T>();
  const T* gradient = bucket.gradient.const_data_ptr<T>();
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (slice.frozen) continue;
    SliceView<T> view{
        weights + slice.offset, gradient + slice.offset, {}, slice.numel, own.groups[i]};
    for (std::size_t k = 0; k < own.tensors.size(); ++k) {
      view.state[k] = own.tensors[k].mutable_data_ptr<T>() + slice.offset;
    }
    update(view);
    if (own.master.defined()) round_from_master(bucket, slice, own.master);
  }
}

}  // namespace thinwire
