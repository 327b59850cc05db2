// Stochastic gradient descent with momentum.
#pragma once

#include <cstdint>
#include <span>

#include "optimizers/groups.h"
#include "optimizers/launch.h"
#include "optimizers/optimizer.h"
#include "optimizers/slice_state.h"

namespace thinwire {

// torch::optim::SGD's options; the learning rate comes with each step.
struct SgdOptions {
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;  // a GroupRule may set another
  bool nesterov = false;    // needs momentum > 0 and dampening 0
};

// torch::optim::SGD over flat buckets, in one pass over memory:
//   d = scale g + weight_decay w;  buf = momentum buf + (1 - dampening) d;
//   w -= lr (d + momentum buf) with nesterov, w -= lr buf with momentum, w -= lr d without.
// In the first step buf = d, undampened. The first step is committed_step 0, which a checkpoint
// restores, so nothing else need be saved for it; a slice that thaws later begins with buf = 0.
// State: "momentum/<parameter>" if momentum > 0, "master/<parameter>" for 16-bit weights.
class Sgd : public Optimizer {
 public:
  // Throws `UsageError` on options that torch refuses and on buckets that `SliceState` refuses.
  Sgd(std::span<const Bucket> buckets, const SgdOptions& options, const GroupRules& rules,
      const OptimizerLaunch& launch = {});

  StepPlan plan(std::int64_t committed_step) const override;
  void before_reduce(Bucket& bucket, const StepContext& step) override;
  void after_reduce(Bucket& bucket, const StepParameters& step) override;
  void visit(StateVisitor& visitor) override;

 private:
  SgdOptions options_;
  OptimizerLaunch launch_;
  SliceState state_;
};

}  // namespace thinwire
