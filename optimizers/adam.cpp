#include "optimizers/adam.h"

#include <fmt/format.h>

#include <cmath>

#include "collectives/base/error.h"
#include "optimizers/kernels/kernels.h"

namespace thinwire {
namespace {

void check_beta(const char* name, double beta) {
  if (!(beta >= 0 && beta < 1)) {
    throw UsageError(fmt::format("adam: {} is {}; give a number from 0, below 1", name, beta));
  }
}

const AdamOptions& checked(const AdamOptions& options) {
  check_beta("beta1", options.beta1);
  check_beta("beta2", options.beta2);
  if (!(options.eps >= 0)) {
    throw UsageError(fmt::format("adam: eps is {}; give a number from 0", options.eps));
  }
  if (!(options.weight_decay >= 0)) {
    throw UsageError(
        fmt::format("adam: weight_decay is {}; give a number from 0", options.weight_decay));
  }
  return options;
}

AdamStep numbers(const AdamOptions& options, WeightDecay decay, const StepParameters& step) {
  const double t = static_cast<double>(step.committed_step + 1);
  return {.lr = step.lr,
          .gradient_scale = step.gradient_scale,
          .beta1 = options.beta1,
          .beta2 = options.beta2,
          .eps = options.eps,
          .decay = decay,
          .bias1 = 1 - std::pow(options.beta1, t),
          .sqrt_bias2 = std::sqrt(1 - std::pow(options.beta2, t))};
}

std::vector<std::string> kinds(const AdamOptions& options) {
  if (options.amsgrad) return {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  return {"exp_avg", "exp_avg_sq"};
}

}  // namespace

Adam::Adam(std::span<const Bucket> buckets, const AdamOptions& options, WeightDecay decay,
           const GroupRules& rules, const OptimizerLaunch& launch)
    : options_(checked(options)),
      decay_(decay),
      launch_(launch),
      state_(buckets, rules, options.weight_decay, kinds(options), *launch_.queue) {}

StepPlan Adam::plan(std::int64_t) const {
  return {};
}

void Adam::before_reduce(Bucket&, const StepContext&) {}

void Adam::after_reduce(Bucket& bucket, const StepParameters& step) {
  const AdamStep shared = numbers(options_, decay_, step);
  state_.update(bucket, *launch_.queue, [&]<typename T>(const BucketView<T>& view) {
    launch_.kernels<T>().adam({.slices = view.slices,
                               .slice_count = view.slice_count,
                               .numel = view.numel,
                               .weights = view.weights,
                               .gradient = view.gradient,
                               .exp_avg = view.state[0],
                               .exp_avg_sq = view.state[1],
                               .max_exp_avg_sq = view.state[2],
                               .step = shared},
                              launch_.queue->stream());
  });
}

void Adam::visit(StateVisitor& visitor) {
  state_.visit(visitor);
}

}  // namespace thinwire
