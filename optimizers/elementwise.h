// The optimizer that a rule makes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "collectives/base/error.h"
#include "optimizers/device.h"
#include "optimizers/groups.h"
#include "optimizers/list.h"
#include "optimizers/optimizer.h"
#include "optimizers/slice_state.h"

namespace thinwire {

// Moves the weights of flat buckets by a rule of optimizers/list.h, in one pass over memory. The
// group's quantity is the gradient. State: what the rule names, and "master/<parameter>" for 16-bit
// weights.
template <typename Rule>
class Elementwise : public Optimizer {
 public:
  using Options = typename Rule::Options;

  // Throws `UsageError` on options that the rule refuses and on buckets that `SliceState` refuses.
  Elementwise(std::span<const Bucket> buckets, const Options& options, const GroupRules& rules,
              const OptimizerDevice& device = {})
      : options_(validated(options)),
        device_(device),
        state_(buckets, rules, options.weight_decay, Rule::state(options), *device_.queue) {}

  StepPlan plan(std::int64_t) const override { return {}; }
  void before_reduce(Bucket&, const StepContext&, Queue&) override {}

  void after_reduce(Bucket& bucket, const StepParameters& parameters) override {
    const typename Rule::Step step = Rule::step(options_, parameters);
    state_.update(bucket, *device_.queue, [&]<typename T>(const BucketView<T>& view) {
      device_.kernels<T>().template step<Rule>(view, step, device_.queue->executor());
    });
  }

  std::optional<std::string> end_step(std::span<const Bucket>, std::int64_t) override {
    return std::nullopt;
  }
  void relayout(const Bucket& bucket) override { state_.relayout(bucket, *device_.queue); }
  void visit(StateVisitor& visitor) override { state_.visit(visitor); }

 private:
  static const Options& validated(const Options& options) {
    Rule::validate(options);
    check(has_kernel(Rule::state(options).size(), typename Rule::StateCounts{}),
          "a rule's StateCounts has the number of its states");
    return options;
  }
  template <int... counts>
  static bool has_kernel(std::size_t states, std::integer_sequence<int, counts...>) {
    return ((states == counts) || ...);
  }

  Options options_;
  OptimizerDevice device_;
  SliceState state_;
};

}  // namespace thinwire
