// The elementwise optimizers. Each rule of the list gets its words behind --optimizer, its help,
// its `Optimizer`, and its kernels on the host and on GPUs.
#pragma once

#include <string>
#include <vector>

#include "optimizers/adam.h"
#include "optimizers/lion.h"
#include "optimizers/momentum_rules.h"
#include "optimizers/sgd.h"

namespace thinwire {

template <typename... Rules>
struct RuleList {};

using ElementwiseRules = RuleList<SgdRule, AdamRule, LionRule>;

// Rules that have kernels but no words: parts of optimizers that exchange their momentum.
using MomentumRules = RuleList<OwnMomentumRule, CommonSgdRule, FrozenAdamRule, RefreshAdamRule>;

template <typename... A, typename... B>
RuleList<A..., B...> joined(RuleList<A...>, RuleList<B...>);
using KernelRules = decltype(joined(ElementwiseRules(), MomentumRules()));

// Every word that `make_optimizer` knows, also of optimizers that are not elementwise.
std::vector<std::string> known_optimizers();

// "sgd[:momentum=X,...] | ...": all of them with their keys.
std::string optimizer_help();

}  // namespace thinwire
