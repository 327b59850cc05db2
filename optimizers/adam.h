// Adam and AdamW.
#pragma once

#include <cstdint>
#include <span>

#include "optimizers/groups.h"
#include "optimizers/launch.h"
#include "optimizers/optimizer.h"
#include "optimizers/slice_state.h"

namespace thinwire {

// torch::optim::Adam's options; the learning rate comes with each step. (torch::optim::AdamW
// differs in a weight_decay of 0.01.)
struct AdamOptions {
  double beta1 = 0.9;    // from 0, below 1
  double beta2 = 0.999;  // from 0, below 1
  double eps = 1e-8;
  double weight_decay = 0;  // a GroupRule may set another
  bool amsgrad = false;
};

// torch::optim::Adam and AdamW over flat buckets, in one pass over memory; t = committed_step + 1:
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//   w -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps),
// where amsgrad replaces v by its maximum so far. t counts for all slices: one that thaws late is
// corrected as if it had had zero gradients until then.
// State: "exp_avg/<parameter>", "exp_avg_sq/<parameter>", with amsgrad
// "max_exp_avg_sq/<parameter>", "master/<parameter>" for 16-bit weights.
class Adam : public Optimizer {
 public:
  // Throws `UsageError` on options that torch refuses and on buckets that `SliceState` refuses.
  Adam(std::span<const Bucket> buckets, const AdamOptions& options, WeightDecay decay,
       const GroupRules& rules, const OptimizerLaunch& launch = {});

  StepPlan plan(std::int64_t committed_step) const override;
  void before_reduce(Bucket& bucket, const StepContext& step) override;
  void after_reduce(Bucket& bucket, const StepParameters& step) override;
  void visit(StateVisitor& visitor) override;

 private:
  AdamOptions options_;
  WeightDecay decay_;
  OptimizerLaunch launch_;
  SliceState state_;
};

}  // namespace thinwire
