// Averages of gradients before compression.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/before_reduce.h"
#include "collectives/compression/reducer/reducer_device.h"
#include "collectives/queue_table.h"

namespace thinwire {

// Of slices that `reducer` compresses, this rank's average of gradients,
//   v := momentum v + (1 - momentum) g,
// takes the place of the gradient. Before EF21 it is EF21-SGDM (Fatkhullin, Tyurin, Richtarik 2023)
// but for v's start, which is 0: the first estimates are small, and a dense first step, which sets
// v
// := g as it does to trackers, makes it the paper's. A tracker that is sent rarely is applied in
// every step in between, so its noise adds up; that of an average is smaller. Without dense steps
// the sum of v is the sum of g less momentum / (1 - momentum) of the last v.
//
// State: "averaged_gradient/NAME", averaged.
class GradientAverage final : public BeforeReduce {
 public:
  // `momentum` is above 0 and below 1. `reducer` must live until the last `prepare`.
  GradientAverage(const GradientReducer& reducer, double momentum, const ReducerDevice& device);

  void prepare(const Bucket& bucket) override;
  void relayout(const Bucket& bucket) override;
  void before_reduce(Bucket& bucket, const StepContext& step) override;
  void commit(const Bucket& bucket) override;
  void visit(const Bucket& bucket, StateVisitor& visitor) override;

 private:
  // One bucket's averages.
  struct BucketState {
    std::vector<bool> compressed;  // which slices are
    Layout layout;                 // as the table knows it
    QueueTable<Block> table;       // of compressed slices
    at::Tensor momentum, next;
  };

  BucketState& state_of(const Bucket& bucket);
  void adopt_layout(const Bucket& bucket, BucketState& here);

  const GradientReducer& reducer_;
  double momentum_;
  ReducerDevice device_;
  std::map<int, BucketState> states_;  // by bucket index
};

}  // namespace thinwire
