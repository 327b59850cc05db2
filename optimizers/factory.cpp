#include "optimizers/factory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "collectives/base/choice_reader.h"
#include "optimizers/elementwise.h"

namespace thinwire {
namespace {

// Where an optimizer is made from its options.
struct Site {
  const OptimizerDefaults& defaults;
  std::span<const Bucket> buckets;
  const GroupRules& rules;
  const OptimizerDevice& device;
};

// Words that share their options and differ in defaults only.
struct Kind {
  std::vector<std::string> words;
  std::string keys;
  std::unique_ptr<Optimizer> (*make)(ChoiceReader& spec, const Site& site);
};

template <typename Rule>
std::unique_ptr<Optimizer> make_elementwise(ChoiceReader& spec, const Site& site) {
  const typename Rule::Options options = Rule::parse(spec, site.defaults);
  spec.done();
  return std::make_unique<Elementwise<Rule>>(site.buckets, options, site.rules, site.device);
}

template <typename... Rules>
std::vector<Kind> kinds_of(RuleList<Rules...>) {
  return {{Rules::words(), Rules::keys, make_elementwise<Rules>}...};
}

// An optimizer that is not elementwise is one more of these.
std::vector<Kind> all_kinds() {
  return kinds_of(ElementwiseRules{});
}

}  // namespace

std::vector<std::string> known_optimizers() {
  std::vector<std::string> known;
  for (const Kind& kind : all_kinds()) {
    known.insert(known.end(), kind.words.begin(), kind.words.end());
  }
  return known;
}

std::string optimizer_help() {
  std::vector<std::string> lines;
  for (const Kind& kind : all_kinds()) {
    lines.push_back(fmt::format("{}[:{}]", fmt::join(kind.words, "|"), kind.keys));
  }
  return fmt::format("{}", fmt::join(lines, " | "));
}

std::unique_ptr<Optimizer> make_optimizer(const std::string& text,
                                          const OptimizerDefaults& defaults,
                                          std::span<const Bucket> buckets, const GroupRules& rules,
                                          const OptimizerDevice& device) {
  ChoiceReader spec("--optimizer", text);
  for (const Kind& kind : all_kinds()) {
    if (std::ranges::find(kind.words, spec.name()) != kind.words.end()) {
      return kind.make(spec, {defaults, buckets, rules, device});
    }
  }
  spec.unknown_name(known_optimizers());
}

}  // namespace thinwire
