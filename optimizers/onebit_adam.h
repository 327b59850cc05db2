// 1-bit Adam.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "collectives/compression/options.h"
#include "optimizers/adam.h"
#include "optimizers/device.h"
#include "optimizers/groups.h"
#include "optimizers/optimizer.h"
#include "optimizers/slice_state.h"

namespace thinwire {

// When the variance is frozen where the options give no step.
struct FreezeRule {
  std::int64_t earliest = 0;  // committed steps: the learning rate's warm-up
  // After so many steps, and `earliest`, it is frozen whatever it does. 0: it need not be.
  std::int64_t latest = 0;
  std::int64_t window = 0;  // steps between two looks at it; 0: 1 / (1 - beta2)
  // It is frozen where its sum is at least this share of what it was a window before, and the other
  // way round.
  double ratio = 0.96;
};

struct OnebitAdamOptions {
  double beta1 = 0.9;       // from 0, below 1
  double beta2 = 0.999;     // from 0, below 1
  double eps = 1e-8;        // beside the root
  double weight_decay = 0;  // decoupled; a GroupRule may set another
  // Committed steps in which the variance follows the gradients; none: as `freeze` finds. Of no
  // effect once it is frozen, also in a run that resumes.
  std::optional<std::int64_t> freeze_step = std::nullopt;
  FreezeRule freeze = {};
  // Bits per value of gradients, which are exchanged until the freeze and in refreshing steps: 2 to
  // 8, or 32 (uncompressed).
  std::int64_t warmup_bits = 8;
  // After the freeze every so many steps exchange the gradient, and refresh the variance with it;
  // 0: none does, as in the paper.
  std::int64_t refresh_every = 25;
  double refresh_keep = 0.9;  // of the variance, in a refresh; from 0, below 1
};

// Adam in two stages, after Tang et al., "1-bit Adam" (2021). Until the freeze it is AdamW, step
// for step, of gradients. From then on ranks exchange their momentum, and what divides it, the root
// of the variance, stays as it is; every `refresh_every` steps they exchange the gradient once more
// and refresh it. momentum_rules.h has the formulas. t counts all committed steps, so the momentum
// is corrected by 1 - beta1^t throughout; the variance by 1 - beta2^t until the freeze, and as it
// was there from then on.
//
// What the compressor's policy leaves uncompressed (by default vectors, and --dense-names) stays
// exact: it is AdamW throughout.
//
// Clipping scales what moves the weights; of gradients also what moves the moments, as before
// AdamW. A momentum is formed of gradients that are scaled by the factor of the last step that
// exchanged them.
//
// A weight whose variance is 0 at the freeze, because all its gradients were 0 or because its layer
// was frozen, moves by weight decay alone until a refresh gives it one.
//
// State: "exp_avg/<parameter>", "exp_avg_sq/<parameter>", "onebit_adam/numbers", and a counter.
class OnebitAdam final : public Optimizer {
 public:
  // `policy` says what stays exact.
  OnebitAdam(std::span<const Bucket> buckets, const OnebitAdamOptions& options,
             const GroupRules& rules, const CompressionPolicy& policy = {},
             const OptimizerDevice& device = {});

  StepPlan plan(std::int64_t committed_step) const override;
  void before_reduce(Bucket& bucket, const StepContext& step, Queue& queue) override;
  void after_reduce(Bucket& bucket, const StepParameters& step) override;
  std::optional<std::string> end_step(std::span<const Bucket> buckets,
                                      std::int64_t committed_step) override;
  void relayout(const Bucket& bucket) override { state_.relayout(bucket, *device_.queue); }
  void visit(StateVisitor& visitor) override;

  // Committed steps before the variance was frozen; none: it is not yet.
  std::optional<std::int64_t> frozen_after() const;

  // Its words; as those of a rule.
  static std::vector<std::string> words() { return {"onebit_adam"}; }
  static constexpr const char* keys =
      "freeze_step=N|auto,warmup_bits=2..8|32,refresh_every=N,beta1=X,beta2=X,eps=X,weight_decay=X";
  static OnebitAdamOptions parse(ChoiceReader& spec, const OptimizerDefaults& defaults);
  // With which its gradients are coded.
  static CodecOptions gradient_codec(const OnebitAdamOptions& options);

 private:
  // A step's kind, by the committed steps before it.
  enum class Kind { warm_up, momentum, refresh };
  Kind kind(std::int64_t committed_step) const;
  FrozenAdamStep frozen_step(const StepParameters& step) const;
  bool settles(std::span<const Bucket> buckets, std::int64_t steps);

  OnebitAdamOptions options_;
  OptimizerDevice device_;
  SliceState state_;
  std::int64_t frozen_after_ = 0;  // committed steps; 0: it is not frozen
  // Two numbers, as a tensor that checkpoints hold: the corrected variance, summed over all
  // weights, at the last look, and the factor of clipping in the last step that exchanged
  // gradients.
  at::Tensor numbers_;
  double& variance() { return numbers_.data_ptr<double>()[0]; }
  std::atomic_ref<double> clip_scale() {
    return std::atomic_ref<double>(numbers_.data_ptr<double>()[1]);
  }
};

}  // namespace thinwire
