// Whether messages reach the end of their coding's range.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "collectives/bucket.h"
#include "collectives/compression/kernels/kernels.h"
#include "collectives/queue.h"
#include "collectives/queue_table.h"

namespace thinwire {

// Looks at one bucket's messages in every hundredth step. What is beyond the coding's largest value
// is clamped, and the energy of what encoding has lost (EncodeArgs::energy) tells: rounding alone
// loses at most 2^-11 of each value.
class Saturation {
 public:
  explicit Saturation(double largest) : largest_(largest) {}
  // Before the messages of a step are encoded: whether to look at them.
  void begin(std::int64_t step, std::int64_t block_count, const at::Tensor& like, Queue& queue);
  // Where encoding writes for the blocks from `first_block` on; null: it need not.
  template <typename T>
  T* energy(std::int64_t first_block) {
    return looks_ ? energy_.data_ptr<T>() + 2 * first_block : nullptr;
  }
  // After encoding: brings all to the host, where it is once the queue was synchronised.
  void fetch(Queue& queue);
  // Then: the parameter of the first block that was clamped. Only that this rank has sent.
  std::optional<std::string> name(const Bucket& bucket, const QueueTable<Block>& table) const;

 private:
  double largest_;
  bool looks_ = false;
  at::Tensor energy_;  // two per block
  std::shared_ptr<void> on_host_;
};

}  // namespace thinwire
