// SGD whose momentum is exchanged.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "optimizers/device.h"
#include "optimizers/groups.h"
#include "optimizers/optimizer.h"
#include "optimizers/slice_state.h"

namespace thinwire {

struct CommonSgdOptions {
  double momentum = 0.9;    // above 0, below 1
  double weight_decay = 0;  // a GroupRule may set another
};

// SGD with a momentum that all ranks have in common: each adds its own gradient to it and sends
// that (momentum_rules.h). Where nothing is lost on the way, and nothing is clipped, it is
// torch::optim::SGD. Compressed it does not amplify what compression delays, as momentum behind
// compressed gradients does. Clipping bounds the momentum that moves the weights, which is up to
// 1 / (1 - momentum) gradients.
// State: "momentum/<parameter>".
class CommonSgd final : public Optimizer {
 public:
  // Throws `UsageError` for options that cannot be.
  CommonSgd(std::span<const Bucket> buckets, const CommonSgdOptions& options,
            const GroupRules& rules, const OptimizerDevice& device = {});

  StepPlan plan(std::int64_t) const override { return {.quantity = Quantity::momentum}; }
  void before_reduce(Bucket& bucket, const StepContext& step, Queue& queue) override;
  void after_reduce(Bucket& bucket, const StepParameters& step) override;
  std::optional<std::string> end_step(std::span<const Bucket>, std::int64_t) override {
    return std::nullopt;
  }
  void relayout(const Bucket& bucket) override { state_.relayout(bucket, *device_.queue); }
  void visit(StateVisitor& visitor) override { state_.visit(visitor); }

 private:
  CommonSgdOptions options_;
  OptimizerDevice device_;
  SliceState state_;
};

}  // namespace thinwire
