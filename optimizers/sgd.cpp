#include "optimizers/sgd.h"

#include <fmt/format.h>

#include "collectives/base/error.h"
#include "optimizers/kernels/kernels.h"

namespace thinwire {
namespace {

const SgdOptions& checked(const SgdOptions& options) {
  if (!(options.momentum >= 0)) {
    throw UsageError(
        fmt::format("sgd: momentum is {}; give a number from 0 to 1", options.momentum));
  }
  if (!(options.weight_decay >= 0)) {
    throw UsageError(
        fmt::format("sgd: weight_decay is {}; give a number from 0", options.weight_decay));
  }
  if (options.nesterov && !(options.momentum > 0 && options.dampening == 0)) {
    throw UsageError(
        fmt::format("sgd: nesterov with momentum {} and dampening {}; give a momentum above 0 and "
                    "no dampening",
                    options.momentum, options.dampening));
  }
  return options;
}

SgdStep numbers(const SgdOptions& options, const StepParameters& step) {
  SgdStep result{
      .lr = step.lr, .gradient_scale = step.gradient_scale, .momentum = options.momentum};
  // The buffer is zero before the first step, so that buf = d only takes an undampened d.
  result.take = step.committed_step == 0 ? 1 : 1 - options.dampening;
  result.direct = options.nesterov ? 1 : 0;
  result.buffered = options.nesterov ? options.momentum : 1;
  return result;
}

}  // namespace

Sgd::Sgd(std::span<const Bucket> buckets, const SgdOptions& options, const GroupRules& rules,
         const OptimizerLaunch& launch)
    : options_(checked(options)),
      launch_(launch),
      state_(
          buckets, rules, options.weight_decay,
          options.momentum > 0 ? std::vector<std::string>{"momentum"} : std::vector<std::string>{},
          *launch_.queue) {}

StepPlan Sgd::plan(std::int64_t) const {
  return {};
}

void Sgd::before_reduce(Bucket&, const StepContext&) {}

void Sgd::after_reduce(Bucket& bucket, const StepParameters& step) {
  const SgdStep shared = numbers(options_, step);
  state_.update(bucket, *launch_.queue, [&]<typename T>(const BucketView<T>& view) {
    launch_.kernels<T>().sgd({.slices = view.slices,
                              .slice_count = view.slice_count,
                              .numel = view.numel,
                              .weights = view.weights,
                              .gradient = view.gradient,
                              .momentum = view.state[0],
                              .step = shared},
                             launch_.queue->stream());
  });
}

void Sgd::visit(StateVisitor& visitor) {
  state_.visit(visitor);
}

}  // namespace thinwire
