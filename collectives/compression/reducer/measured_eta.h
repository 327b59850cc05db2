// EControl's weights of the error where kernels read them, and how they follow the messages.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "collectives/compression/feedback/feedback.h"
#include "collectives/compression/kernels/kernels.h"
#include "collectives/queue.h"

namespace thinwire {

// The weights of one bucket's slices, which are a tensor in the queue's memory; measured ones
// follow the energy that encoding leaves per block.
class MeasuredEta {
 public:
  // The table whose blocks the energy is of; `eta` has the weights.
  void set_blocks(const std::vector<Block>& blocks, const at::Tensor& eta, Queue& queue);
  // Where encoding writes for the blocks from `first_block` on.
  template <typename T>
  T* energy(std::int64_t first_block) {
    return energy_.defined() ? energy_.data_ptr<T>() + 2 * first_block : nullptr;
  }
  // After encoding: brings all to the host, where it is once the queue was synchronised.
  void fetch(const at::Tensor& eta, Queue& queue);
  // Then: enqueues the new weights. Those of absent slices stay.
  void learn(const Bucket& bucket, at::Tensor& eta, Queue& queue);

 private:
  // Of the bucket's blocks in their order, in which they are summed, however the table has them.
  struct Place {
    std::int64_t begin = 0;
    std::size_t row = 0;  // of the table
    std::size_t slice = 0;
  };
  std::vector<Place> places_;
  at::Tensor energy_;  // two per block
  std::shared_ptr<void> energy_on_host_, eta_on_host_;
};

}  // namespace thinwire
