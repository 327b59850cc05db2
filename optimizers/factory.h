// An optimizer from its name.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "collectives/bucket.h"
#include "optimizers/groups.h"
#include "optimizers/launch.h"
#include "optimizers/optimizer.h"

namespace thinwire {

// What a spec that does not say otherwise uses.
struct OptimizerDefaults {
  double momentum = 0;  // sgd only
  double weight_decay = 0;
};

// "sgd" with the keys momentum, dampening, weight_decay and nesterov (0 or 1); "adam" and "adamw"
// with beta1, beta2, eps, weight_decay and amsgrad (0 or 1). Keys that are not given have torch's
// defaults, or `defaults`. Throws `UsageError` naming --optimizer, or as the optimizer's
// constructor does.
std::unique_ptr<Optimizer> make_optimizer(const std::string& spec,
                                          const OptimizerDefaults& defaults,
                                          std::span<const Bucket> buckets,
                                          const GroupRules& rules = no_decay_on_vectors(),
                                          const OptimizerLaunch& launch = {});

}  // namespace thinwire
