#include "optimizers/factory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "optimizers/common_sgd.h"
#include "optimizers/elementwise.h"
#include "optimizers/onebit_adam.h"

namespace thinwire {
namespace {

// Where an optimizer is made from its options.
struct Site {
  const OptimizerDefaults& defaults;
  std::span<const Bucket> buckets;
  const GroupRules& rules;
  const OptimizerDevice& device;
  const CompressionPolicy& policy;
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

// Plain SGD, or SGD whose momentum is exchanged.
std::unique_ptr<Optimizer> make_sgd(ChoiceReader& spec, const Site& site) {
  const std::string exchange = spec.text("exchange", "gradient");
  const SgdOptions options = SgdRule::parse(spec, site.defaults);
  spec.done();
  if (exchange == "gradient") {
    return std::make_unique<Sgd>(site.buckets, options, site.rules, site.device);
  }
  if (exchange != "momentum") {
    throw UsageError(
        fmt::format("--optimizer: exchange is '{}'; give gradient or momentum", exchange));
  }
  SgdRule::validate(options);
  if (options.dampening != 0 || options.nesterov) {
    throw UsageError(
        "--optimizer: sgd with exchange=momentum has no dampening and no nesterov, as no gradients "
        "are exchanged; leave them out, or exchange=gradient");
  }
  return std::make_unique<CommonSgd>(
      site.buckets,
      CommonSgdOptions{.momentum = options.momentum, .weight_decay = options.weight_decay},
      site.rules, site.device);
}

template <typename... Rules>
std::vector<Kind> kinds_of(RuleList<Rules...>) {
  return {{Rules::words(), Rules::keys, make_elementwise<Rules>}...};
}

std::unique_ptr<Optimizer> make_onebit_adam(ChoiceReader& spec, const Site& site) {
  const OnebitAdamOptions options = OnebitAdam::parse(spec, site.defaults);
  spec.done();
  return std::make_unique<OnebitAdam>(site.buckets, options, site.rules, site.policy, site.device);
}

template <typename First, typename... Rules>
First first_of(RuleList<First, Rules...>);

// An optimizer that is not elementwise is one more of these.
std::vector<Kind> all_kinds() {
  std::vector<Kind> kinds = kinds_of(ElementwiseRules{});
  // Of sgd an option decides which class it is.
  static_assert(std::is_same_v<decltype(first_of(ElementwiseRules{})), SgdRule>);
  kinds.front() = {SgdRule::words(), std::string(SgdRule::keys) + ",exchange=gradient|momentum",
                   make_sgd};
  kinds.push_back({OnebitAdam::words(), OnebitAdam::keys, make_onebit_adam});
  return kinds;
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
                                          const OptimizerDevice& device,
                                          const CompressionPolicy& policy) {
  ChoiceReader spec("--optimizer", text);
  for (const Kind& kind : all_kinds()) {
    if (std::ranges::find(kind.words, spec.name()) != kind.words.end()) {
      return kind.make(spec, {defaults, buckets, rules, device, policy});
    }
  }
  spec.unknown_name(known_optimizers());
}

bool exchanges_momentum(const std::string& text) {
  ChoiceReader spec("--optimizer", text);
  const bool common_sgd =
      spec.name() == SgdRule::words().front() && spec.text("exchange", "gradient") == "momentum";
  return common_sgd || gradient_codec_of(text).has_value();
}

std::optional<CodecOptions> gradient_codec_of(const std::string& text) {
  ChoiceReader spec("--optimizer", text);
  const std::vector<std::string> words = OnebitAdam::words();
  if (std::ranges::find(words, spec.name()) == words.end()) return std::nullopt;
  return OnebitAdam::gradient_codec(OnebitAdam::parse(spec, {}));
}

}  // namespace thinwire
