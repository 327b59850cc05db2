// State, frozen slices, 16-bit weights, resuming, and what constructors refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <map>
#include <string>

#include "collectives/base/error.h"
#include "optimizers/elementwise.h"
#include "optimizers/factory.h"
#include "tests/optimizers/cases.h"
#include "tests/optimizers/support.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::IsEmpty;

std::vector<std::string> names(Optimizer& optimizer) {
  Collector collector;
  optimizer.visit(collector);
  std::vector<std::string> all;
  for (const auto& [name, entry] : collector.entries) all.push_back(name);
  return all;
}

std::vector<Bucket> float_buckets() {
  return make_buckets(torch::kFloat, torch::kFloat);
}

// The kinds of state that each form has for every parameter.
TEST(State, Names) {
  auto buckets = float_buckets();
  buckets.resize(1);
  buckets[0].slices.resize(2);
  const auto kinds = [&](const std::string& text) {
    const auto all = names(*make_optimizer(text, {}, buckets));
    std::vector<std::string> found;
    for (const std::string& name : all) {
      const std::string kind = name.substr(0, name.find('/'));
      if (name == kind + "/head.bias") found.push_back(kind);
    }
    EXPECT_EQ(all.size(), 2 * found.size());
    for (const std::string& kind : found) EXPECT_THAT(all, Contains(kind + "/head.weight"));
    return found;
  };
  EXPECT_THAT(kinds("sgd"), IsEmpty());
  EXPECT_THAT(kinds("sgd:momentum=0.9"), ElementsAre("momentum"));
  EXPECT_THAT(kinds("adam"), ElementsAre("exp_avg", "exp_avg_sq"));
  EXPECT_THAT(kinds("adamw:amsgrad=1"), ElementsAre("exp_avg", "exp_avg_sq", "max_exp_avg_sq"));
  EXPECT_THAT(kinds("lion"), ElementsAre("exp_avg"));
}

TEST(State, IsReplicatedShapedAsTheParameterAndAliasesTheOwner) {
  for (const at::ScalarType dtype : {torch::kFloat, torch::kDouble}) {
    auto buckets = make_buckets(dtype, dtype);
    Sgd optimizer(buckets, {.momentum = 0.5}, {});
    Collector before;
    optimizer.visit(before);
    fill_gradients(buckets, 1);
    step(optimizer, buckets, {.lr = 0.1});
    for (const Bucket& bucket : buckets) {
      for (const Slice& slice : bucket.slices) {
        const StateEntry& entry = before.entries.at("momentum/" + slice.name);
        EXPECT_EQ(entry.kind, StateKind::replicated);
        EXPECT_EQ(entry.tensor.scalar_type(), dtype);
        EXPECT_EQ(entry.tensor.sizes().vec(), slice.shape);
        EXPECT_TRUE(torch::equal(entry.tensor, part(bucket.gradient, slice))) << slice.name;
      }
    }
  }
}

TEST(Plan, SendsCompressedGradientsAsTheyAre) {
  auto buckets = float_buckets();
  fill_gradients(buckets, 1);
  const auto before = clone(buckets);
  for (const std::string& text : rule_cases()) {
    const auto optimizer = make_optimizer(text, {}, buckets);
    EXPECT_EQ(optimizer->plan(7).quantity, Quantity::gradient);
    EXPECT_EQ(optimizer->plan(7).transmission, Transmission::compressed);
    optimizer->before_reduce(buckets[0], {}, *make_host_queue());
    EXPECT_TRUE(torch::equal(buckets[0].gradient, before[0].gradient));
    EXPECT_TRUE(torch::equal(buckets[0].weights, before[0].weights));
  }
}

enum class Why { frozen, absent };

// In the second step a slice rests: it and its state stay, for the others it is a step as any.
void expect_resting_slices_stay(const std::vector<Bucket>& initial, Why why, Optimizer& optimizer) {
  auto buckets = clone(initial);
  fill_gradients(buckets, 1);
  step(optimizer, buckets, {.lr = 0.1});
  const auto before = clone(buckets);
  std::map<std::string, at::Tensor> state_before;
  Collector first;
  optimizer.visit(first);
  for (const auto& [name, entry] : first.entries) state_before[name] = entry.tensor.clone();
  if (why == Why::frozen) {
    resting::set_frozen(buckets[0], 1, true);
  } else {
    buckets[0].slices[1].absent = true;
  }
  fill_gradients(buckets, 2);
  step(optimizer, buckets, {.lr = 0.1, .committed_step = 1});
  Collector state;
  optimizer.visit(state);
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    for (const Slice& slice : buckets[b].slices) {
      EXPECT_EQ(resting::rests(buckets[b], slice),
                torch::equal(part(buckets[b].weights, slice), part(before[b].weights, slice)))
          << slice.name;
    }
  }
  for (const auto& [name, entry] : state.entries) {
    if (name == "onebit_adam/numbers") continue;  // of no slice
    EXPECT_EQ(name.ends_with("/head.weight"), torch::equal(entry.tensor, state_before.at(name)))
        << name;
  }
}

TEST(Resting, SlicesAndTheirStateDoNotMove) {
  for (const at::ScalarType weights : {torch::kFloat, torch::kBFloat16}) {
    const auto initial = make_buckets(weights, torch::kFloat);
    for (const Why why : {Why::frozen, Why::absent}) {
      for (const std::string& text : optimizer_cases()) {
        SCOPED_TRACE(text);
        expect_resting_slices_stay(initial, why, *make_optimizer(text, {}, initial));
      }
    }
  }
}

// Among them sgd with dampening, whose undamped first step must not be repeated after resuming.
TEST(Resume, ContinuesWithTheBitsOfAnUninterruptedRun) {
  for (const at::ScalarType weights : {torch::kFloat, torch::kBFloat16}) {
    for (const std::string& text : optimizer_cases()) {
      auto straight = make_buckets(weights, torch::kFloat);
      const auto uninterrupted = make_optimizer(text, {}, straight);
      auto resumed = clone(straight);
      auto first = make_optimizer(text, {}, resumed);
      for (std::int64_t t = 0; t < 6; ++t) {
        if (t == 3) {
          auto second = make_optimizer(text, {}, resumed);
          copy_state(*first, *second);
          first = std::move(second);
        }
        fill_gradients(straight, static_cast<std::uint64_t>(t));
        fill_gradients(resumed, static_cast<std::uint64_t>(t));
        step(*uninterrupted, straight, {.lr = 0.1, .committed_step = t});
        step(*first, resumed, {.lr = 0.1, .committed_step = t});
      }
      for (std::size_t b = 0; b < straight.size(); ++b) {
        EXPECT_TRUE(torch::equal(straight[b].weights, resumed[b].weights)) << text;
      }
    }
  }
}

TEST(Gradient, MayLieInAnotherStorageEveryStep) {
  auto buckets = float_buckets();
  auto leaves = make_leaves(buckets);
  Sgd ours(buckets, {}, {});
  torch::optim::SGD oracle(leaves, torch::optim::SGDOptions(0.1));
  for (std::uint64_t t = 0; t < 2; ++t) {
    for (Bucket& bucket : buckets) bucket.gradient = torch::zeros_like(bucket.gradient);
    fill_gradients(buckets, t);
    copy_gradients(buckets, 1, leaves);
    oracle.step();
    step(ours, buckets, {.lr = 0.1, .committed_step = static_cast<std::int64_t>(t)});
  }
  EXPECT_LE(largest_difference(buckets, leaves), 1e-6);
}

// The updates are far below the spacing of 16-bit numbers: without a master they would be lost.
TEST(SixteenBits, WeightsAreRoundedFromAMasterThatFollowsTorch) {
  for (const at::ScalarType dtype : {torch::kBFloat16, torch::kHalf}) {
    auto buckets = make_buckets(dtype, torch::kFloat);
    const auto initial = clone(buckets);
    auto leaves = make_leaves(buckets);
    Adam ours(buckets, {}, {});
    torch::optim::Adam oracle(leaves, torch::optim::AdamOptions(1e-5));
    for (std::int64_t t = 0; t < 200; ++t) {
      fill_gradients(buckets, 3);
      copy_gradients(buckets, 1, leaves);
      oracle.step();
      step(ours, buckets, {.lr = 1e-5, .committed_step = t});
    }
    Collector state;
    ours.visit(state);
    std::size_t leaf = 0;
    for (std::size_t b = 0; b < buckets.size(); ++b) {
      for (const Slice& slice : buckets[b].slices) {
        const at::Tensor master = state.entries.at("master/" + slice.name).tensor;
        EXPECT_TRUE(torch::allclose(master, leaves[leaf++].detach(), 1e-6, 1e-8)) << slice.name;
        EXPECT_TRUE(torch::equal(part(buckets[b].weights, slice), master.to(dtype)));
      }
      EXPECT_FALSE(torch::equal(buckets[b].weights, initial[b].weights));
      EXPECT_TRUE(gaps_are_zero(buckets[b].weights, buckets[b]));
    }
  }
}

// The master has the bits of fp32 weights that began where the 16-bit ones did.
TEST(SixteenBits, MastersMoveAsWeightsOf32BitsDo) {
  for (const at::ScalarType dtype : {torch::kBFloat16, torch::kHalf}) {
    for (const std::string& text : optimizer_cases()) {
      auto narrow = make_buckets(dtype, torch::kFloat);
      auto wide = clone(narrow);
      for (Bucket& bucket : wide) bucket.weights = bucket.weights.to(torch::kFloat);
      const auto ours = make_optimizer(text, {}, narrow);
      const auto expected = make_optimizer(text, {}, wide);
      for (std::int64_t t = 0; t < 5; ++t) {
        fill_gradients(narrow, static_cast<std::uint64_t>(t));
        fill_gradients(wide, static_cast<std::uint64_t>(t));
        step(*ours, narrow, {.lr = 1e-4, .committed_step = t});
        step(*expected, wide, {.lr = 1e-4, .committed_step = t});
      }
      Collector state;
      ours->visit(state);
      for (std::size_t b = 0; b < narrow.size(); ++b) {
        EXPECT_TRUE(narrow[b].weights.equal(wide[b].weights.to(dtype))) << text;
        for (const Slice& slice : narrow[b].slices) {
          EXPECT_TRUE(
              state.entries.at("master/" + slice.name).tensor.equal(part(wide[b].weights, slice)))
              << text << ", " << slice.name;
        }
      }
    }
  }
}

TEST(Refused, OptionsThatTorchRefuses) {
  const auto buckets = float_buckets();
  EXPECT_THROW(Sgd(buckets, {.momentum = -0.1}, {}), UsageError);
  EXPECT_THROW(Sgd(buckets, {.weight_decay = -0.1}, {}), UsageError);
  EXPECT_THROW(Sgd(buckets, {.nesterov = true}, {}), UsageError);
  EXPECT_THROW(Sgd(buckets, {.momentum = 0.9, .dampening = 0.1, .nesterov = true}, {}), UsageError);
  EXPECT_THROW(Adam(buckets, {.beta1 = 1}, {}), UsageError);
  EXPECT_THROW(Adam(buckets, {.beta2 = -0.1}, {}), UsageError);
  EXPECT_THROW(Adam(buckets, {.eps = -1}, {}), UsageError);
  EXPECT_THROW(Adam(buckets, {.weight_decay = -1}, {}), UsageError);
}

TEST(Refused, DtypesAndDevices) {
  EXPECT_THROW(Sgd(make_buckets(torch::kHalf, torch::kHalf), {}, {}), UsageError);
  EXPECT_THROW(Sgd(make_buckets(torch::kFloat, torch::kDouble), {}, {}), UsageError);
  EXPECT_THROW(Sgd(make_buckets(torch::kBFloat16, torch::kDouble), {}, {}), UsageError);
  auto elsewhere = float_buckets();
  elsewhere[1].weights = elsewhere[1].weights.to(torch::kMeta);
  elsewhere[1].gradient = elsewhere[1].gradient.to(torch::kMeta);
  EXPECT_THROW(Sgd(elsewhere, {}, {}), UsageError);
}

TEST(Refused, BucketsThatDoNotFit) {
  auto swapped = float_buckets();
  std::swap(swapped[0], swapped[1]);
  EXPECT_THROW(Sgd(swapped, {}, {}), Bug);
  auto attached = float_buckets();
  attached[0].weights = at::Tensor();
  EXPECT_THROW(Sgd(attached, {}, {}), Bug);
  auto buckets = float_buckets();
  Sgd optimizer(buckets, {}, {});
  buckets[0].slices.pop_back();
  EXPECT_THROW(optimizer.after_reduce(buckets[0], {}), Bug);
}

}  // namespace
}  // namespace thinwire
