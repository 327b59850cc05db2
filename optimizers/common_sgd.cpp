#include "optimizers/common_sgd.h"

namespace thinwire {
namespace {

const CommonSgdOptions& validated(const CommonSgdOptions& options) {
  require_option(options.momentum > 0 && options.momentum < 1,
                 "sgd with exchange=momentum: momentum", options.momentum,
                 "a momentum above 0 and below 1");
  require_not_negative("sgd: weight_decay", options.weight_decay);
  return options;
}

}  // namespace

CommonSgd::CommonSgd(std::span<const Bucket> buckets, const CommonSgdOptions& options,
                     const GroupRules& rules, const OptimizerDevice& device)
    : options_(validated(options)),
      device_(device),
      state_(buckets, rules, options.weight_decay, {"momentum"}, *device_.queue) {}

void CommonSgd::before_reduce(Bucket& bucket, const StepContext&, Queue& queue) {
  const OwnMomentumRule::Step mix{.keep = options_.momentum, .take = 1};
  state_.form_quantity(bucket, queue, 0, [&]<typename T>(const BucketView<T>& view) {
    device_.kernels<T>().template step<OwnMomentumRule>(view, mix, queue.executor());
  });
}

void CommonSgd::after_reduce(Bucket& bucket, const StepParameters& step) {
  const CommonSgdRule::Step common{.lr = step.lr, .scale = step.gradient_scale};
  state_.update(bucket, *device_.queue, [&]<typename T>(const BucketView<T>& view) {
    device_.kernels<T>().template step<CommonSgdRule>(view, common, device_.queue->executor());
  });
}

}  // namespace thinwire
