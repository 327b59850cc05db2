// EControl's mean of trackers formed anew, on a queue.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/communicator.h"
#include "collectives/compression/feedback/feedback.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/finite_flag.h"
#include "collectives/compression/reducer/owners.h"
#include "collectives/compression/reducer/reducer_device.h"
#include "collectives/queue_table.h"

namespace thinwire {

// One bucket's. From `renew` in a stage until the verdict it remembers what was there before.
class TrackerRenewal {
 public:
  // Sets the step's `renewed_part` of the mean; a sum that is not finite lowers the flag.
  // Only of what is live: pieces have their live elements first (LiveOrder), and the state too.
  void renew(const Bucket& bucket, const std::vector<Chunk>& chunks, const EControlState& state,
             Communicator& communicator, std::int64_t step, const ReducerDevice& device,
             FiniteFlag& flag);
  // At commit: absent slices have their mean of before.
  void commit(const Bucket& bucket, const EControlState& state, Queue& queue);
  // All have.
  void rollback(const Bucket& bucket, const EControlState& state, Queue& queue);

 private:
  struct RenewedPiece {
    std::size_t slice = 0;
    Range range;
    std::int64_t place = 0;  // in the message
  };

  void put_back(const RenewedPiece& piece, const Bucket& bucket, const EControlState& state,
                Queue& queue);

  std::vector<RenewedPiece> pieces_;
  at::Tensor message_, before_;
  QueueTable<Block> table_;  // of the message
};

}  // namespace thinwire
