// The order of elements in which reducers work where slices are partly live.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/owners.h"
#include "collectives/compression/reducer/reducer_device.h"
#include "collectives/queue_table.h"

namespace thinwire {

// Within each piece of a partly live slice the live elements come first, then the others, both
// rising. So a codec sees the live values without gaps, blocks lie as they do where all is live,
// and what rests is one block that holds its state. A reducer keeps its state in this order from
// step to step, and brings the gradient into it and the estimate out of it in each.
class LiveOrder {
 public:
  // The order of a bucket by its layout now. Nothing may be in the order of before.
  void set(const Bucket& bucket, const std::vector<Chunk>& chunks, Queue& queue);
  bool is_natural() const { return parts_.size() == 0; }

  // Of a tensor that has the bucket's elements `part`, which ends where pieces do. Nothing is done
  // where it is undefined.
  void apply(const at::Tensor& values, Range part, const ReducerDevice& device);
  void revert(const at::Tensor& values, Range part, const ReducerDevice& device);

 private:
  template <typename T>
  PermuteArgs<T> arguments(const at::Tensor& values, Range part);

  QueueTable<PermutedPart> parts_;  // by rising `begin`
  QueueTable<std::int32_t> order_;
  at::Tensor scratch_, scratch_before_;  // the queue may still use the latter
};

// values := 0 in those elements of `part`, which are the tensor's, that the layout says are gone.
void clear_gone(const Bucket& bucket, const at::Tensor& values, Range part, Queue& queue);

}  // namespace thinwire
