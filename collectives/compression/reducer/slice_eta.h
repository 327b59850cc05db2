// The weight of the error in EControl's messages, slice by slice.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/kernels/kernels.h"
#include "collectives/queue.h"
#include "runtime/base/state.h"

namespace thinwire {

// One eta per slice of a bucket: given, or learnt from the energy that encoding measures. Without
// feedback with a tracker there is none, and the kernels get null pointers.
class SliceEta {
 public:
  SliceEta() = default;
  // `given` for all slices; none: learnt, beginning with 0.
  SliceEta(const Bucket& bucket, std::optional<double> given);

  // The table whose blocks the energy is of.
  void set_blocks(const std::vector<Block>& blocks);
  // Before encoding: puts the values where kernels read them. `like` is on the device.
  void upload(const at::Tensor& like, Queue& queue);
  // After it: brings the energy to the host, where it is once the queue was synchronised.
  void fetch_energy(Queue& queue);
  // The step is committed: follows the contraction that was measured.
  void learn();

  template <typename T>
  const T* data() const {
    return in_queue_.defined() ? in_queue_.const_data_ptr<T>() : nullptr;
  }
  // Of the blocks from `first_block` on; null where nothing is learnt.
  template <typename T>
  T* energy(std::int64_t first_block) {
    return energy_.defined() ? energy_.data_ptr<T>() + 2 * first_block : nullptr;
  }

  void visit(const Bucket& bucket, StateVisitor& visitor);

 private:
  bool learnt_ = false;
  at::Tensor values_;  // float64, host: one per slice
  std::vector<std::int32_t> slice_of_block_;
  at::Tensor in_queue_, energy_;
  std::shared_ptr<void> values_on_host_, energy_on_host_;
};

}  // namespace thinwire
