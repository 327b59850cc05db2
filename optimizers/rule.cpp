#include "optimizers/rule.h"

#include <fmt/format.h>

#include "collectives/base/error.h"

namespace thinwire {

void require_option(bool holds, const std::string& what, double value, const std::string& range) {
  if (!holds) throw UsageError(fmt::format("{} is {}; give {}", what, value, range));
}

// Written so that NaN is refused too.
void require_not_negative(const std::string& what, double value) {
  require_option(value >= 0, what, value, "a number from 0");
}

void require_below_one(const std::string& what, double value) {
  require_option(value >= 0 && value < 1, what, value, "a number from 0, below 1");
}

double parse_weight_decay(ChoiceReader& spec, const OptimizerDefaults& defaults) {
  constexpr double most = 1000;
  return spec.number("weight_decay", defaults.weight_decay, 0, most);
}

bool parse_switch(ChoiceReader& spec, const std::string& key) {
  return spec.integer(key, 0, 0, 1) == 1;
}

}  // namespace thinwire
