#include "optimizers/factory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <regex>

#include "collectives/base/error.h"
#include "optimizers/elementwise.h"
#include "tests/optimizers/cases.h"
#include "tests/optimizers/support.h"

namespace thinwire {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsSupersetOf;
using testing::MatchesRegex;

// Both move the same weights to the same bits.
void expect_same(const std::vector<Bucket>& initial, Optimizer& actual, Optimizer& expected) {
  auto ours = clone(initial);
  auto theirs = clone(initial);
  for (std::int64_t t = 0; t < 4; ++t) {
    fill_gradients(ours, static_cast<std::uint64_t>(t));
    fill_gradients(theirs, static_cast<std::uint64_t>(t));
    step(actual, ours, {.lr = 0.1, .committed_step = t});
    step(expected, theirs, {.lr = 0.1, .committed_step = t});
  }
  for (std::size_t b = 0; b < ours.size(); ++b) {
    EXPECT_TRUE(torch::equal(ours[b].weights, theirs[b].weights));
    EXPECT_FALSE(torch::equal(ours[b].weights, initial[b].weights));
  }
}

TEST(Factory, Sgd) {
  const auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  const OptimizerDefaults defaults{.momentum = 0.5, .weight_decay = 0.1};
  const GroupRules rules = no_decay_on_vectors();
  Sgd plain(buckets, {.momentum = 0.5, .weight_decay = 0.1}, rules);
  expect_same(buckets, *make_optimizer("sgd", defaults, buckets), plain);
  Sgd damped(buckets, {.momentum = 0.5, .dampening = 0.25, .weight_decay = 0.1}, rules);
  expect_same(buckets, *make_optimizer("sgd:dampening=0.25", defaults, buckets), damped);
  Sgd own(buckets, {.momentum = 0.75, .weight_decay = 0.2, .nesterov = true}, rules);
  expect_same(buckets,
              *make_optimizer("sgd:momentum=0.75,weight_decay=0.2,nesterov=1", defaults, buckets),
              own);
}

TEST(Factory, AdamAndAdamW) {
  const auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  const OptimizerDefaults defaults{.momentum = 0.5, .weight_decay = 0.1};
  Adam adam(buckets, {.weight_decay = 0.1}, {});
  expect_same(buckets, *make_optimizer("adam", defaults, buckets, {}), adam);
  Adam adamw(buckets, {.weight_decay = 0.1, .decoupled_weight_decay = true}, {});
  expect_same(buckets, *make_optimizer("adamw", defaults, buckets, {}), adamw);
  const AdamOptions options{.beta1 = 0.5,
                            .beta2 = 0.75,
                            .eps = 0.01,
                            .weight_decay = 0.2,
                            .amsgrad = true,
                            .decoupled_weight_decay = true};
  Adam own(buckets, options, no_decay_on_vectors());
  expect_same(buckets,
              *make_optimizer("adamw:beta1=0.5,beta2=0.75,eps=0.01,weight_decay=0.2,amsgrad=1",
                              defaults, buckets),
              own);
}

TEST(Factory, Lion) {
  const auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  const OptimizerDefaults defaults{.momentum = 0.5, .weight_decay = 0.1};
  Lion lion(buckets, {.beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1}, no_decay_on_vectors());
  expect_same(buckets, *make_optimizer("lion", defaults, buckets), lion);
  Lion own(buckets, {.beta1 = 0.5, .beta2 = 0.75, .weight_decay = 0.2}, no_decay_on_vectors());
  expect_same(buckets,
              *make_optimizer("lion:beta1=0.5,beta2=0.75,weight_decay=0.2", defaults, buckets),
              own);
}

TEST(Factory, MakesEveryWordAndSaysHow) {
  const auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  EXPECT_THAT(known_optimizers(), IsSupersetOf({"sgd", "adam", "adamw", "lion", "onebit_adam"}));
  for (const std::string& word : known_optimizers()) {
    EXPECT_NE(make_optimizer(word, {}, buckets), nullptr) << word;
    EXPECT_THAT(optimizer_help(), HasSubstr(word));
    // What the other tests are to try.
    EXPECT_THAT(optimizer_cases(), Contains(MatchesRegex(word + "(:.*)?")));
  }
  EXPECT_THAT(optimizer_help(), HasSubstr("adam|adamw[:beta1=X,"));
}

// What the help promises: each key with a value that fits its placeholder.
TEST(Factory, TakesEveryKeyOfItsHelp) {
  const auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  const auto try_rule = [&](auto rule) {
    std::string keys = std::regex_replace(rule.keys, std::regex("=X"), "=0.5");
    keys = std::regex_replace(keys, std::regex("=0\\|1"), "=0");
    for (const std::string& word : rule.words()) {
      EXPECT_NE(make_optimizer(word + ":" + keys, {}, buckets), nullptr) << word;
    }
  };
  const auto try_all = [&]<typename... Rules>(RuleList<Rules...>) { (try_rule(Rules{}), ...); };
  try_all(ElementwiseRules{});
  EXPECT_NE(make_optimizer("sgd:momentum=0.5,exchange=momentum", {}, buckets), nullptr);
  EXPECT_NE(make_optimizer("onebit_adam:freeze_step=auto,warmup_bits=8,refresh_every=3,beta1=0.5,"
                           "beta2=0.5,eps=0.5,weight_decay=0.5",
                           {}, buckets),
            nullptr);
}

TEST(Factory, RefusesWhatItDoesNotKnow) {
  const auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  const auto message = [&](const std::string& spec) -> std::string {
    try {
      make_optimizer(spec, {}, buckets);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message("adma"), HasSubstr("did you mean 'adam'?"));
  EXPECT_THAT(message("sgd:dampning=1"), HasSubstr("did you mean 'dampening'?"));
  EXPECT_THAT(message("adam:nesterov=1"), HasSubstr("unknown key 'nesterov'"));
  EXPECT_THAT(message("sgd:nesterov=2"), HasSubstr("'nesterov' is '2'"));
  EXPECT_THAT(message("sgd:nesterov=1"), HasSubstr("give a momentum above 0"));
  EXPECT_THAT(message("adamw:beta1=1"), HasSubstr("beta1 is 1"));
  EXPECT_THAT(message("adamw:weight_decay=1e300"), HasSubstr("from 0 to 1000"));
  EXPECT_THAT(message("sgd:weight_decay=1e300"), HasSubstr("from 0 to 1000"));
  EXPECT_THAT(message("adam:eps=2"), HasSubstr("from 0 to 1"));
  EXPECT_THAT(message("lino"), HasSubstr("did you mean 'lion'?"));
  EXPECT_EQ(message("lion:beta1=1"), "lion: beta1 is 1; give a number from 0, below 1");
  EXPECT_EQ(message("lion:beta2=much"),
            "--optimizer lion: 'beta2' is 'much'; give a number from 0 to 1");
  EXPECT_EQ(message("lion:momentum=0.9"),
            "--optimizer lion: unknown key 'momentum'; it takes beta1, beta2, weight_decay");
}

}  // namespace
}  // namespace thinwire
