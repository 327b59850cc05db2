// The optimizers in all forms that differ in what they do. Whoever adds one adds rows here, and the
// tests of state, resuming, groups, 16-bit weights, coded gradients, vectors of every kind and GPUs
// have it. (What only one optimizer does is in torch_equality_test.cpp or in a test of its own.)
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "collectives/base/choice_reader.h"
#include "optimizers/list.h"

namespace thinwire {

inline std::vector<std::string> rule_cases() {
  return {
      "sgd:weight_decay=0.05",
      "sgd:momentum=0.9,dampening=0.3,weight_decay=0.05",
      "sgd:momentum=0.9,weight_decay=0.05,nesterov=1",
      "adam:weight_decay=0.05",
      "adam:amsgrad=1",
      "adamw:weight_decay=0.05",
      "adamw:beta1=0.8,eps=0.001,weight_decay=0.05,amsgrad=1",
      "lion:weight_decay=0.05",
      "lion:beta1=0.5,beta2=0.75",
  };
}

// With those that are more than one rule. 1-bit Adam exchanges its momentum from the third step on
// in one of them; the other one refreshes its variance from the second on.
inline std::vector<std::string> optimizer_cases() {
  std::vector<std::string> cases = rule_cases();
  cases.emplace_back("sgd:momentum=0.9,weight_decay=0.05,exchange=momentum");
  cases.emplace_back("onebit_adam:freeze_step=1,refresh_every=1,weight_decay=0.05");
  cases.emplace_back("onebit_adam:freeze_step=2,refresh_every=2");
  return cases;
}

// Calls `body(Rule{}, options)` with the rule and the options of a case; whether there is one.
template <typename Body, typename... Rules>
bool with_rule_in(const std::string& text, const Body& body, RuleList<Rules...>) {
  const auto try_rule = [&](auto rule) {
    using Rule = decltype(rule);
    ChoiceReader spec("case", text);
    for (const std::string& word : Rule::words()) {
      if (word != spec.name()) continue;
      body(rule, Rule::parse(spec, {}));
      return true;
    }
    return false;
  };
  return (try_rule(Rules{}) || ...);
}
template <typename Body>
bool with_rule(const std::string& text, const Body& body) {
  return with_rule_in(text, body, ElementwiseRules{});
}

}  // namespace thinwire
