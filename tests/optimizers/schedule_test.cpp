#include "optimizers/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <numbers>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using testing::HasSubstr;

TEST(Schedule, ConstantIsTheBaseRate) {
  const Schedule schedule = parse_schedule("constant", 0.3, 10);
  for (const std::int64_t step : {0, 1, 9, 10, 1000000}) EXPECT_EQ(schedule.at(step), 0.3);
}

TEST(Schedule, StepEqualsTorchStepLr) {
  torch::optim::SGD optimizer({torch::zeros({1})}, torch::optim::SGDOptions(0.3));
  torch::optim::StepLR oracle(optimizer, 7, 0.5);
  // PyTorch's constructor makes this call itself; without it the C++ scheduler lags by one step.
  oracle.step();
  const Schedule schedule = parse_schedule("step:every=7,factor=0.5", 0.3, 100);
  for (std::int64_t step = 0; step < 100; ++step) {
    EXPECT_DOUBLE_EQ(schedule.at(step), optimizer.param_groups()[0].options().get_lr()) << step;
    oracle.step();
  }
}

TEST(Schedule, StepFactorDefaultsToATenth) {
  const Schedule schedule = parse_schedule("step:every=2", 1, 100);
  EXPECT_EQ(schedule.at(1), 1);
  EXPECT_DOUBLE_EQ(schedule.at(2), 0.1);
  EXPECT_DOUBLE_EQ(schedule.at(5), 0.01);
}

// torch's CosineAnnealingLR computes each rate from the one before.
TEST(Schedule, CosineEqualsTorchRecursion) {
  const double base = 0.3;
  const double lowest = 0.01 * base;
  const std::int64_t total = 250;
  const Schedule schedule = parse_schedule("cosine:final=0.01", base, total);
  double expected = base;
  const auto wave = [&](std::int64_t step) {
    return 1 + std::cos(std::numbers::pi * static_cast<double>(step) / static_cast<double>(total));
  };
  for (std::int64_t step = 0; step < total; ++step) {
    EXPECT_NEAR(schedule.at(step), expected, 1e-14) << step;
    expected = lowest + (expected - lowest) * wave(step + 1) / wave(step);
  }
}

TEST(Schedule, CosineHasItsKnownPointsAndStaysAtTheEnd) {
  const Schedule schedule = parse_schedule("cosine:final=0.2", 1, 12);
  EXPECT_EQ(schedule.at(0), 1);
  EXPECT_DOUBLE_EQ(schedule.at(4), 0.2 + 0.8 * 0.75);
  EXPECT_DOUBLE_EQ(schedule.at(6), 0.2 + 0.8 * 0.5);
  EXPECT_DOUBLE_EQ(schedule.at(12), 0.2);
  EXPECT_DOUBLE_EQ(schedule.at(18), 0.2);
  EXPECT_DOUBLE_EQ(parse_schedule("cosine", 1, 12).at(12), 0);
}

TEST(Schedule, WarmUpGrowsLinearlyFromAboveZeroToTheBaseRate) {
  for (const std::string spec :
       {"constant:warmup=4", "step:every=3,factor=0.5,warmup=4", "cosine:warmup=4"}) {
    const Schedule schedule = parse_schedule(spec, 2, 14);
    EXPECT_EQ(schedule.at(0), 0.5) << spec;
    EXPECT_EQ(schedule.at(1), 1.0) << spec;
    EXPECT_EQ(schedule.at(2), 1.5) << spec;
    EXPECT_EQ(schedule.at(3), 2.0) << spec;
    EXPECT_EQ(schedule.at(4), 2.0) << spec;
  }
}

TEST(Schedule, DecayCountsFromTheEndOfTheWarmUp) {
  const Schedule step = parse_schedule("step:every=3,factor=0.5,warmup=4", 2, 14);
  EXPECT_EQ(step.at(6), 2);
  EXPECT_EQ(step.at(7), 1);
  EXPECT_EQ(step.at(10), 0.5);
  const Schedule cosine = parse_schedule("cosine:warmup=4", 2, 14);
  EXPECT_DOUBLE_EQ(cosine.at(9), 1);
  EXPECT_DOUBLE_EQ(cosine.at(14), 0);
}

TEST(Schedule, AWarmUpLongerThanTheRunOnlyGrows) {
  const Schedule schedule = parse_schedule("cosine:warmup=20", 2, 10);
  EXPECT_EQ(schedule.at(9), 1);
  EXPECT_EQ(schedule.at(20), 2);
}

TEST(Schedule, RefusesWhatItDoesNotKnow) {
  const auto message = [](const std::string& spec) -> std::string {
    try {
      parse_schedule(spec, 1, 10);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message("cosin"), HasSubstr("did you mean 'cosine'?"));
  EXPECT_THAT(message("constant:warmpu=3"), HasSubstr("did you mean 'warmup'?"));
  EXPECT_THAT(message("constant:final=3"), HasSubstr("unknown key 'final'"));
  EXPECT_THAT(message("step"), HasSubstr("write step:every=STEPS"));
  EXPECT_THAT(message("step:every=0"), HasSubstr("'every' is '0'"));
  EXPECT_THAT(message("cosine:final=2"), HasSubstr("'final' is '2'"));
  EXPECT_THAT(message("constant:warmup=-1"), HasSubstr("'warmup' is '-1'"));
  EXPECT_THAT(message("cosine:warmup=100000000000000"), HasSubstr("from 0 to 1000000000"));
  EXPECT_THAT(message("step:every=100000000000000"), HasSubstr("from 1 to 1000000000"));
}

}  // namespace
}  // namespace thinwire
