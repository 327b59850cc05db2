#include "optimizers/factory.h"

#include "collectives/base/spec.h"
#include "optimizers/adam.h"
#include "optimizers/sgd.h"

namespace thinwire {
namespace {

constexpr double most_decay = 1000;  // as --weight-decay

SgdOptions sgd_options(Spec& spec, const OptimizerDefaults& defaults) {
  SgdOptions options;
  options.momentum = spec.number("momentum", defaults.momentum, 0, 1);
  options.dampening = spec.number("dampening", options.dampening, 0, 1);
  options.weight_decay = spec.number("weight_decay", defaults.weight_decay, 0, most_decay);
  options.nesterov = spec.integer("nesterov", 0, 0, 1) == 1;
  spec.done();
  return options;
}

AdamOptions adam_options(Spec& spec, const OptimizerDefaults& defaults) {
  AdamOptions options;
  options.beta1 = spec.number("beta1", options.beta1, 0, 1);
  options.beta2 = spec.number("beta2", options.beta2, 0, 1);
  options.eps = spec.number("eps", options.eps, 0, 1);
  options.weight_decay = spec.number("weight_decay", defaults.weight_decay, 0, most_decay);
  options.amsgrad = spec.integer("amsgrad", 0, 0, 1) == 1;
  spec.done();
  return options;
}

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(const std::string& text,
                                          const OptimizerDefaults& defaults,
                                          std::span<const Bucket> buckets, const GroupRules& rules,
                                          const OptimizerLaunch& launch) {
  Spec spec("--optimizer", text);
  if (spec.name() == "sgd") {
    return std::make_unique<Sgd>(buckets, sgd_options(spec, defaults), rules, launch);
  }
  if (spec.name() == "adam") {
    return std::make_unique<Adam>(buckets, adam_options(spec, defaults), WeightDecay::coupled,
                                  rules, launch);
  }
  if (spec.name() == "adamw") {
    return std::make_unique<Adam>(buckets, adam_options(spec, defaults), WeightDecay::decoupled,
                                  rules, launch);
  }
  spec.unknown_name({"sgd", "adam", "adamw"});
}

}  // namespace thinwire
