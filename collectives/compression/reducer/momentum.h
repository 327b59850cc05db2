// Momentum before compression.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "collectives/compression/options.h"
#include "collectives/queue_table.h"

namespace thinwire {

// Decorator: of compressed slices the inner reducer gets this rank's average of gradients,
//   v := momentum v + (1 - momentum) g,
// in place of the gradient. Around EF21 it is EF21-SGDM (Fatkhullin, Tyurin, Richtarik 2023) but
// for v's start, which is 0: the first estimates are small, and a dense first step, which sets v :=
// g as it does to trackers, makes it the paper's. A tracker that is sent rarely is applied in every
// step in between, so its noise adds up; that of an average is smaller. Without dense steps the sum
// of v is the sum of g less momentum / (1 - momentum) of the last v.
//
// State: "averaged_gradient/NAME", averaged.
class MomentumReducer final : public GradientReducer {
 public:
  // `momentum` is above 0 and below 1.
  MomentumReducer(std::unique_ptr<GradientReducer> inner, double momentum,
                  const ReducerLaunch& launch);

  void prepare(const Bucket& bucket, int rank, int size) override;
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override;
  void settle(Communicator& communicator) override { inner_->settle(communicator); }
  std::optional<std::string> non_finite(const Bucket& bucket) override {
    return inner_->non_finite(bucket);
  }
  std::optional<std::string> warning(const Bucket& bucket) const override {
    return inner_->warning(bucket);
  }
  void show_estimate(const Bucket& bucket, Bucket& view) override {
    inner_->show_estimate(bucket, view);
  }
  void commit(Bucket& bucket) override;
  void rollback(Bucket& bucket) override { inner_->rollback(bucket); }
  void visit(const Bucket& bucket, StateVisitor& visitor) override;
  std::vector<SlicePlan> plan(const Bucket& bucket) const override { return inner_->plan(bucket); }

 private:
  // One bucket's averages.
  struct Path {
    std::vector<bool> compressed;  // which slices are
    std::vector<bool> frozen;      // as the table knows them
    QueueTable<Block> table;       // of compressed slices
    at::Tensor momentum, next;
  };

  Path& path(const Bucket& bucket);
  void lay_out(const Bucket& bucket, Path& here);

  std::unique_ptr<GradientReducer> inner_;
  double momentum_;
  ReducerLaunch launch_;
  std::map<int, Path> paths_;  // by bucket index
};

}  // namespace thinwire
