// Our optimizers against torch::optim, step by step.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <tuple>

#include "optimizers/elementwise.h"
#include "optimizers/factory.h"
#include "tests/optimizers/cases.h"
#include "tests/optimizers/support.h"

namespace thinwire {
namespace {

constexpr std::int64_t steps = 100;

double rate(std::int64_t step) {
  return 0.02 * (1.5 + std::sin(static_cast<double>(step)));
}

double tolerance(at::ScalarType dtype) {
  return dtype == torch::kDouble ? 1e-13 : 1e-6;
}

template <typename Options>
void set_rate(torch::optim::Optimizer& optimizer, double lr) {
  for (auto& group : optimizer.param_groups()) static_cast<Options&>(group.options()).lr(lr);
}

// Runs both with the same changing rate and gradients; `scale` is our gradient_scale.
template <typename Options>
void expect_equal_steps(std::vector<Bucket>& buckets, Optimizer& ours,
                        std::vector<at::Tensor>& leaves, torch::optim::Optimizer& oracle,
                        double scale) {
  const double limit = tolerance(buckets[0].gradient.scalar_type());
  for (std::int64_t t = 0; t < steps; ++t) {
    fill_gradients(buckets, static_cast<std::uint64_t>(t));
    copy_gradients(buckets, scale, leaves);
    set_rate<Options>(oracle, rate(t));
    oracle.step();
    step(ours, buckets, {.lr = rate(t), .gradient_scale = scale, .committed_step = t});
    ASSERT_LE(largest_difference(buckets, leaves), limit) << "step " << t;
  }
  for (const Bucket& bucket : buckets) EXPECT_TRUE(gaps_are_zero(bucket.weights, bucket));
}

using SgdCase = std::tuple<at::ScalarType, double, double, double, bool>;
class SgdEquality : public testing::TestWithParam<SgdCase> {};

TEST_P(SgdEquality, TorchOptim) {
  const auto [dtype, momentum, dampening, weight_decay, nesterov] = GetParam();
  auto buckets = make_buckets(dtype, dtype);
  auto leaves = make_leaves(buckets);
  Sgd ours(buckets, {momentum, dampening, weight_decay, nesterov}, {});
  torch::optim::SGD oracle(leaves, torch::optim::SGDOptions(1)
                                       .momentum(momentum)
                                       .dampening(dampening)
                                       .weight_decay(weight_decay)
                                       .nesterov(nesterov));
  expect_equal_steps<torch::optim::SGDOptions>(buckets, ours, leaves, oracle, 1);
}

// All combinations but those that torch refuses: nesterov without momentum or with dampening.
std::vector<SgdCase> sgd_cases() {
  std::vector<SgdCase> cases;
  for (const at::ScalarType dtype : {torch::kFloat, torch::kDouble}) {
    for (const double weight_decay : {0.0, 0.05}) {
      for (const double momentum : {0.0, 0.9}) {
        for (const double dampening : {0.0, 0.3}) {
          cases.emplace_back(dtype, momentum, dampening, weight_decay, false);
        }
      }
      cases.emplace_back(dtype, 0.9, 0.0, weight_decay, true);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(AllOptions, SgdEquality, testing::ValuesIn(sgd_cases()));

// Numbers of few bits, so that nothing is rounded and equality is exact.
TEST(SgdEquality, BitEqualWhereNothingIsRounded) {
  for (const SgdOptions& options :
       {SgdOptions{0, 0, 0.25, false}, SgdOptions{0.5, 0, 0.25, false},
        SgdOptions{0.5, 0.25, 0, false}, SgdOptions{0.5, 0, 0.25, true}}) {
    auto buckets = make_buckets(torch::kFloat, torch::kFloat);
    for (Bucket& bucket : buckets) bucket.weights.mul_(4).round_();
    auto leaves = make_leaves(buckets);
    Sgd ours(buckets, options, {});
    torch::optim::SGD oracle(leaves, torch::optim::SGDOptions(0.25)
                                         .momentum(options.momentum)
                                         .dampening(options.dampening)
                                         .weight_decay(options.weight_decay)
                                         .nesterov(options.nesterov));
    for (std::int64_t t = 0; t < 3; ++t) {
      fill_gradients(buckets, static_cast<std::uint64_t>(t));
      for (Bucket& bucket : buckets) bucket.gradient.mul_(4).round_();
      copy_gradients(buckets, 1, leaves);
      oracle.step();
      step(ours, buckets, {.lr = 0.25, .committed_step = t});
      EXPECT_EQ(largest_difference(buckets, leaves), 0) << "step " << t;
    }
  }
}

using AdamCase = std::tuple<at::ScalarType, double, bool>;
class AdamEquality : public testing::TestWithParam<AdamCase> {};

TEST_P(AdamEquality, TorchAdam) {
  const auto [dtype, weight_decay, amsgrad] = GetParam();
  auto buckets = make_buckets(dtype, dtype);
  auto leaves = make_leaves(buckets);
  const AdamOptions options{.beta1 = 0.8, .weight_decay = weight_decay, .amsgrad = amsgrad};
  Adam ours(buckets, options, {});
  torch::optim::Adam oracle(
      leaves,
      torch::optim::AdamOptions().betas({0.8, 0.999}).weight_decay(weight_decay).amsgrad(amsgrad));
  expect_equal_steps<torch::optim::AdamOptions>(buckets, ours, leaves, oracle, 1);
}

TEST_P(AdamEquality, TorchAdamW) {
  const auto [dtype, weight_decay, amsgrad] = GetParam();
  auto buckets = make_buckets(dtype, dtype);
  auto leaves = make_leaves(buckets);
  const AdamOptions options{.beta2 = 0.95,
                            .eps = 1e-3,
                            .weight_decay = weight_decay,
                            .amsgrad = amsgrad,
                            .decoupled_weight_decay = true};
  Adam ours(buckets, options, {});
  torch::optim::AdamW oracle(leaves, torch::optim::AdamWOptions()
                                         .betas({0.9, 0.95})
                                         .eps(1e-3)
                                         .weight_decay(weight_decay)
                                         .amsgrad(amsgrad));
  expect_equal_steps<torch::optim::AdamWOptions>(buckets, ours, leaves, oracle, 1);
}

INSTANTIATE_TEST_SUITE_P(AllOptions, AdamEquality,
                         testing::Combine(testing::Values(torch::kFloat, torch::kDouble),
                                          testing::Values(0.0, 0.05), testing::Bool()));

TEST(GradientScale, EqualsAGradientScaledBeforehand) {
  for (const at::ScalarType dtype : {torch::kFloat, torch::kDouble}) {
    auto buckets = make_buckets(dtype, dtype);
    auto leaves = make_leaves(buckets);
    Sgd ours(buckets, {.momentum = 0.9, .weight_decay = 0.05, .nesterov = true}, {});
    torch::optim::SGD oracle(
        leaves, torch::optim::SGDOptions(1).momentum(0.9).weight_decay(0.05).nesterov(true));
    expect_equal_steps<torch::optim::SGDOptions>(buckets, ours, leaves, oracle, 0.3);
  }
}

TEST(GradientScale, HasTheBitsOfAGradientScaledBeforehand) {
  const auto initial = make_buckets(torch::kFloat, torch::kFloat);
  for (const std::string& text : rule_cases()) {
    auto ours = clone(initial);
    auto theirs = clone(initial);
    const auto scaled_by_us = make_optimizer(text, {}, ours);
    const auto scaled_before = make_optimizer(text, {}, theirs);
    for (std::int64_t t = 0; t < 5; ++t) {
      fill_gradients(ours, static_cast<std::uint64_t>(t));
      fill_gradients(theirs, static_cast<std::uint64_t>(t));
      for (Bucket& bucket : theirs) bucket.gradient.mul_(0.3);
      step(*scaled_by_us, ours, {.lr = 0.1, .gradient_scale = 0.3, .committed_step = t});
      step(*scaled_before, theirs, {.lr = 0.1, .committed_step = t});
    }
    for (std::size_t b = 0; b < ours.size(); ++b) {
      EXPECT_TRUE(torch::equal(ours[b].weights, theirs[b].weights)) << text;
    }
  }
}

TEST(Groups, EqualTorchParameterGroups) {
  auto buckets = make_buckets(torch::kDouble, torch::kDouble);
  auto leaves = make_leaves(buckets);
  GroupRules rules = no_decay_on_vectors();
  rules.push_back({.pattern = "conv.*", .lr_scale = 0.5});
  Adam ours(buckets, {.weight_decay = 0.05, .decoupled_weight_decay = true}, rules);
  // The leaves are head.bias, head.weight, conv.weight, gain, norm.weight.
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto add = [&groups](std::vector<at::Tensor> parameters, double weight_decay) {
    groups.emplace_back(std::move(parameters),
                        std::make_unique<torch::optim::AdamWOptions>(
                            torch::optim::AdamWOptions().weight_decay(weight_decay)));
  };
  add({leaves[1]}, 0.05);
  add({leaves[2]}, 0.05);
  add({leaves[0], leaves[3], leaves[4]}, 0);
  torch::optim::AdamW oracle(groups, torch::optim::AdamWOptions());
  for (std::int64_t t = 0; t < steps; ++t) {
    fill_gradients(buckets, static_cast<std::uint64_t>(t));
    copy_gradients(buckets, 1, leaves);
    set_rate<torch::optim::AdamWOptions>(oracle, rate(t));
    static_cast<torch::optim::AdamWOptions&>(oracle.param_groups()[1].options()).lr(rate(t) * 0.5);
    oracle.step();
    step(ours, buckets, {.lr = rate(t), .committed_step = t});
    ASSERT_LE(largest_difference(buckets, leaves), tolerance(torch::kDouble)) << "step " << t;
  }
}

TEST(Groups, SgdWithHalfTheScaleEqualsTorchWithHalfTheRate) {
  auto buckets = make_buckets(torch::kDouble, torch::kDouble);
  auto leaves = make_leaves(buckets);
  for (const double momentum : {0.0, 0.9}) {
    Sgd ours(buckets, {.momentum = momentum}, {{.lr_scale = 0.5}});
    torch::optim::SGD oracle(leaves, torch::optim::SGDOptions(0.05).momentum(momentum));
    for (std::int64_t t = 0; t < 10; ++t) {
      fill_gradients(buckets, static_cast<std::uint64_t>(t));
      copy_gradients(buckets, 1, leaves);
      oracle.step();
      step(ours, buckets, {.lr = 0.1, .committed_step = t});
      ASSERT_LE(largest_difference(buckets, leaves), tolerance(torch::kDouble)) << "step " << t;
    }
  }
}

// Half the rate, or another decay, from a rule has the bits of an optimizer that has it from the
// start, in the slices that the rule names.
TEST(Groups, HaveTheBitsOfAnOptimizerOfTheirOwn) {
  const auto initial = make_buckets(torch::kFloat, torch::kFloat);
  for (const std::string& text : optimizer_cases()) {
    SCOPED_TRACE(text);
    const auto run = [&](const GroupRules& rules, double lr) {
      auto buckets = clone(initial);
      const auto optimizer = make_optimizer(text, {}, buckets, rules);
      for (std::int64_t t = 0; t < 5; ++t) {
        fill_gradients(buckets, static_cast<std::uint64_t>(t));
        step(*optimizer, buckets, {.lr = lr, .committed_step = t});
      }
      return buckets;
    };
    const auto together = run({{.weight_decay = 0.125},
                               {.rank = SliceRank::vectors, .weight_decay = 0.0},
                               {.pattern = "conv.*", .lr_scale = 0.5}},
                              0.1);
    const auto decayed = run({{.weight_decay = 0.125}}, 0.1);
    const auto undecayed = run({{.weight_decay = 0.0}}, 0.1);
    const auto slow = run({{.weight_decay = 0.125}}, 0.05);
    const auto expect_part = [&](const std::vector<Bucket>& alone, std::size_t b, std::size_t s) {
      const Slice& slice = initial[b].slices[s];
      EXPECT_TRUE(part(together[b].weights, slice).equal(part(alone[b].weights, slice)))
          << slice.name;
    };
    expect_part(undecayed, 0, 0);  // head.bias
    expect_part(decayed, 0, 1);    // head.weight
    expect_part(slow, 0, 2);       // conv.weight
    expect_part(undecayed, 1, 0);  // gain
    EXPECT_FALSE(decayed[0].weights.equal(undecayed[0].weights));
    EXPECT_FALSE(decayed[0].weights.equal(slow[0].weights));
  }
}

}  // namespace
}  // namespace thinwire
