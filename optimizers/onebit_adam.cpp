#include "optimizers/onebit_adam.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

// The formulas of its slices.
constexpr int kExact = 0;
constexpr int kFrozen = 1;
// The state's kinds.
constexpr std::size_t kVariance = 1;

constexpr std::int64_t kMostSteps = std::int64_t{1} << 40;

const OnebitAdamOptions& validated(const OnebitAdamOptions& options) {
  require_below_one("onebit_adam: beta1", options.beta1);
  require_below_one("onebit_adam: beta2", options.beta2);
  require_not_negative("onebit_adam: eps", options.eps);
  require_not_negative("onebit_adam: weight_decay", options.weight_decay);
  require_below_one("onebit_adam: refresh_keep", options.refresh_keep);
  require_option(options.refresh_every >= 0, "onebit_adam: refresh_every",
                 static_cast<double>(options.refresh_every), "a number of steps, or 0 for none");
  const bool has_codec =
      options.warmup_bits == 32 || (options.warmup_bits >= 2 && options.warmup_bits <= 8);
  require_option(has_codec, "onebit_adam: warmup_bits", static_cast<double>(options.warmup_bits),
                 "2 to 8, or 32 for uncompressed gradients");
  if (options.freeze_step) {
    require_option(*options.freeze_step >= 1, "onebit_adam: freeze_step",
                   static_cast<double>(*options.freeze_step),
                   "at least 1: the variance is formed by then");
  }
  return options;
}

}  // namespace

OnebitAdamOptions OnebitAdam::parse(ChoiceReader& spec, const OptimizerDefaults& defaults) {
  OnebitAdamOptions options;
  options.beta1 = spec.number("beta1", options.beta1, 0, 1);
  options.beta2 = spec.number("beta2", options.beta2, 0, 1);
  options.eps = spec.number("eps", options.eps, 0, 1);
  options.weight_decay = parse_weight_decay(spec, defaults);
  const std::string freeze_step = spec.text("freeze_step", "auto");
  if (freeze_step != "auto") {
    options.freeze_step = parse_integer("--optimizer: freeze_step", freeze_step, 1, kMostSteps);
  }
  options.warmup_bits = spec.integer("warmup_bits", options.warmup_bits, 2, 32);
  options.refresh_every = spec.integer("refresh_every", options.refresh_every, 0, kMostSteps);
  options.freeze.earliest = defaults.lr_warmup;
  if (defaults.total_steps > 0) {
    // A seventh of the steps costs about as many bytes as all others.
    options.freeze.latest = std::max(defaults.lr_warmup, defaults.total_steps * 3 / 20);
    options.freeze.window = std::max<std::int64_t>(defaults.total_steps / 50, 10);
  }
  return options;
}

CodecOptions OnebitAdam::gradient_codec(const OnebitAdamOptions& options) {
  if (options.warmup_bits == 32) return Uncompressed{};
  return Quantize{.bits = static_cast<int>(options.warmup_bits)};
}

OnebitAdam::OnebitAdam(std::span<const Bucket> buckets, const OnebitAdamOptions& options,
                       const GroupRules& rules, const CompressionPolicy& policy,
                       const OptimizerDevice& device)
    : options_(validated(options)),
      device_(device),
      state_(
          buckets, rules, options.weight_decay, {"exp_avg", "exp_avg_sq"}, *device_.queue,
          [&](const Slice& slice) { return reason_for_dense(slice, policy) ? kExact : kFrozen; }) {
  numbers_ = at::zeros({2}, at::kDouble);
  clip_scale().store(1);
  if (options_.freeze.window == 0) {
    options_.freeze.window = std::max<std::int64_t>(std::llround(1 / (1 - options_.beta2)), 1);
  }
}

std::optional<std::int64_t> OnebitAdam::frozen_after() const {
  if (frozen_after_ == 0) return std::nullopt;
  return frozen_after_;
}

OnebitAdam::Kind OnebitAdam::kind(std::int64_t committed_step) const {
  if (frozen_after_ == 0 || committed_step < frozen_after_) return Kind::warm_up;
  const std::int64_t since = committed_step - frozen_after_ + 1;
  const bool refreshes = options_.refresh_every > 0 && since % options_.refresh_every == 0;
  return refreshes ? Kind::refresh : Kind::momentum;
}

StepPlan OnebitAdam::plan(std::int64_t committed_step) const {
  StepPlan plan;
  if (kind(committed_step) == Kind::momentum) plan.quantity = Quantity::momentum;
  return plan;
}

void OnebitAdam::before_reduce(Bucket& bucket, const StepContext& step, Queue& queue) {
  if (step.quantity != Quantity::momentum) return;
  const OwnMomentumRule::Step mix{.keep = options_.beta1,
                                  .take = (1 - options_.beta1) * clip_scale().load()};
  state_.form_quantity(bucket, queue, kFrozen, [&]<typename T>(const BucketView<T>& view) {
    device_.kernels<T>().template step<OwnMomentumRule>(view, mix, queue.executor());
  });
}

FrozenAdamStep OnebitAdam::frozen_step(const StepParameters& step) const {
  FrozenAdamStep frozen;
  frozen.lr = step.lr;
  frozen.scale = step.gradient_scale;
  frozen.beta1 = options_.beta1;
  frozen.eps = options_.eps;
  frozen.bias1 = 1 - std::pow(options_.beta1, static_cast<double>(step.committed_step + 1));
  frozen.bias2 = 1 - std::pow(options_.beta2, static_cast<double>(frozen_after_));
  frozen.refresh_keep = options_.refresh_keep;
  return frozen;
}

void OnebitAdam::after_reduce(Bucket& bucket, const StepParameters& step) {
  const Kind kind = this->kind(step.committed_step);
  StepParameters of_gradients = step;
  if (kind == Kind::momentum) {
    of_gradients.gradient_scale *= clip_scale().load();
  } else {
    clip_scale().store(step.gradient_scale);  // the same for all buckets
  }
  const AdamRule::Step exact = AdamRule::step({.beta1 = options_.beta1,
                                               .beta2 = options_.beta2,
                                               .eps = options_.eps,
                                               .decoupled_weight_decay = true},
                                              of_gradients);
  const FrozenAdamStep frozen = frozen_step(step);
  state_.update(bucket, *device_.queue, [&]<typename T>(const BucketView<T>& view) {
    const OptimizerKernels<T>& kernels = device_.kernels<T>();
    const Executor& on = device_.queue->executor();
    if (kind == Kind::warm_up || view.formula == kExact) {
      kernels.template step<AdamRule>(view, exact, on);
    } else if (kind == Kind::momentum) {
      kernels.template step<FrozenAdamRule>(view, {frozen}, on);
    } else {
      kernels.template step<RefreshAdamRule>(view, {frozen}, on);
    }
  });
}

std::optional<std::string> OnebitAdam::end_step(std::span<const Bucket> buckets,
                                                std::int64_t committed_step) {
  const std::int64_t steps = committed_step + 1;
  if (frozen_after_ == 0 && settles(buckets, steps)) frozen_after_ = steps;
  if (frozen_after_ != steps) return std::nullopt;
  return fmt::format(
      "onebit_adam: after {} steps the variance is frozen, and momentum is exchanged", steps);
}

// Whether the variance is to be frozen after so many steps.
bool OnebitAdam::settles(std::span<const Bucket> buckets, std::int64_t steps) {
  if (options_.freeze_step) return steps >= *options_.freeze_step;
  const FreezeRule& rule = options_.freeze;
  if (steps < rule.earliest) return false;
  if (rule.latest > 0 && steps >= rule.latest) return true;
  if (steps % rule.window != 0) return false;
  const double before = variance();
  variance() = state_.sum(buckets, kVariance, kFrozen, *device_.queue) /
               (1 - std::pow(options_.beta2, static_cast<double>(steps)));
  return std::min(variance() / before, before / variance()) >= rule.ratio;
}

void OnebitAdam::visit(StateVisitor& visitor) {
  state_.visit(visitor);
  visitor.counter("onebit_adam/frozen_after", frozen_after_);
  StateEntry numbers;
  numbers.name = "onebit_adam/numbers";
  numbers.tensor = numbers_;
  visitor.tensor(numbers);
}

}  // namespace thinwire
