// The elementwise optimizers. Each rule of the list gets its words behind --optimizer, its help,
// its `Optimizer`, and its kernels on the host and on GPUs.
#pragma once

#include <string>
#include <vector>

#include "optimizers/adam.h"
#include "optimizers/lion.h"
#include "optimizers/sgd.h"

namespace thinwire {

template <typename... Rules>
struct RuleList {};

using ElementwiseRules = RuleList<SgdRule, AdamRule, LionRule>;

// Every word that `make_optimizer` knows, also of optimizers that are not elementwise.
std::vector<std::string> known_optimizers();

// "sgd[:momentum=X,...] | ...": all of them with their keys.
std::string optimizer_help();

}  // namespace thinwire
