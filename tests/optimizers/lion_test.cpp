// Lion against its formula: torch::optim has none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "collectives/base/error.h"
#include "optimizers/elementwise.h"
#include "tests/optimizers/support.h"

namespace thinwire {
namespace {

double sign(double x) {
  if (x == 0) return 0;
  return x > 0 ? 1 : -1;
}

// Algorithm 2 of the paper for one parameter, number by number in float64.
struct PlainLion {
  LionOptions options;
  std::vector<double> weights;
  std::vector<double> m = std::vector<double>(weights.size(), 0.0);

  void step(double lr, const std::vector<double>& gradient) {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const double g = gradient[i];
      const double u = sign(options.beta1 * m[i] + (1 - options.beta1) * g);
      weights[i] -= lr * (u + options.weight_decay * weights[i]);
      m[i] = options.beta2 * m[i] + (1 - options.beta2) * g;
    }
  }
};

std::vector<double> numbers(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(torch::kDouble).flatten().contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

TEST(Lion, IsTheFormulaOfThePaper) {
  for (const at::ScalarType dtype : {torch::kFloat, torch::kDouble}) {
    for (const LionOptions& options :
         {LionOptions{}, LionOptions{.beta1 = 0.5, .beta2 = 0.75, .weight_decay = 0.1}}) {
      auto buckets = make_buckets(dtype, dtype);
      std::vector<PlainLion> plain;
      for (const Bucket& bucket : buckets) {
        for (const Slice& slice : bucket.slices) {
          plain.push_back({options, numbers(part(bucket.weights, slice))});
        }
      }
      Lion ours(buckets, options, {});
      for (std::int64_t t = 0; t < 100; ++t) {
        const double lr = 0.02 * (1.5 + std::sin(static_cast<double>(t)));
        const double scale = t % 3 == 0 ? 0.3 : 1;
        fill_gradients(buckets, static_cast<std::uint64_t>(t));
        step(ours, buckets, {.lr = lr, .gradient_scale = scale, .committed_step = t});
        std::size_t p = 0;
        for (const Bucket& bucket : buckets) {
          for (const Slice& slice : bucket.slices) {
            PlainLion& expected = plain[p++];
            expected.step(lr, numbers(part(bucket.gradient, slice).to(torch::kDouble) * scale));
            const at::Tensor want = torch::tensor(expected.weights, torch::kDouble);
            const at::Tensor got = part(bucket.weights, slice).to(torch::kDouble).flatten();
            ASSERT_LE((got - want).abs().max().item<double>(),
                      dtype == torch::kDouble ? 1e-13 : 1e-5)
                << slice.name << ", step " << t;
          }
        }
      }
      for (const Bucket& bucket : buckets) EXPECT_TRUE(gaps_are_zero(bucket.weights, bucket));
    }
  }
}

TEST(Lion, KeepsTheMomentumThatFollowsTheGradientSlowly) {
  auto buckets = make_buckets(torch::kDouble, torch::kDouble);
  Lion ours(buckets, {.beta2 = 0.75}, {});
  fill_gradients(buckets, 1);
  step(ours, buckets, {.lr = 0.1});
  step(ours, buckets, {.lr = 0.1, .committed_step = 1});
  Collector state;
  ours.visit(state);
  for (const Bucket& bucket : buckets) {
    for (const Slice& slice : bucket.slices) {
      const at::Tensor m = state.entries.at("exp_avg/" + slice.name).tensor;
      const at::Tensor once = part(bucket.gradient, slice) * 0.25;
      EXPECT_TRUE(m.equal(once * 0.75 + once)) << slice.name;
    }
  }
}

// Exactly: where nothing has pulled at a weight, it stays.
TEST(Lion, TheSignOfZeroIsZero) {
  for (const double zero : {0.0, -0.0}) {
    auto buckets = make_buckets(torch::kFloat, torch::kFloat);
    const auto initial = clone(buckets);
    for (Bucket& bucket : buckets) bucket.gradient.fill_(zero);
    Lion still(buckets, {}, {});
    step(still, buckets, {.lr = 0.1});
    for (std::size_t b = 0; b < buckets.size(); ++b) {
      EXPECT_TRUE(buckets[b].weights.equal(initial[b].weights));
    }
    Lion decaying(buckets, {.weight_decay = 0.5}, {});
    step(decaying, buckets, {.lr = 0.5});
    for (std::size_t b = 0; b < buckets.size(); ++b) {
      EXPECT_TRUE(buckets[b].weights.equal(initial[b].weights * 0.75));
    }
  }
}

// A pull against a momentum of the same size: u = sign(.5 m + .5 g) is zero, m is not.
TEST(Lion, StaysWhereGradientAndMomentumCancel) {
  auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  Lion ours(buckets, {.beta1 = 0.5, .beta2 = 0}, {});  // m is the last gradient
  for (Bucket& bucket : buckets) bucket.gradient.fill_(2);
  step(ours, buckets, {.lr = 0.25});
  const auto before = clone(buckets);
  for (Bucket& bucket : buckets) bucket.gradient.fill_(-2);
  step(ours, buckets, {.lr = 0.25, .committed_step = 1});
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    EXPECT_TRUE(buckets[b].weights.equal(before[b].weights));
  }
}

// Only the signs of what it mixes count, so gradients of any size move the weights alike.
TEST(Lion, DoesNotSeeTheSizeOfGradients) {
  const auto initial = make_buckets(torch::kFloat, torch::kFloat);
  std::vector<at::Tensor> ends;
  for (const double size : {0x1p-60, 1.0, 0x1p60}) {
    auto buckets = clone(initial);
    Lion ours(buckets, {.weight_decay = 0.1}, {});
    for (std::int64_t t = 0; t < 20; ++t) {
      fill_gradients(buckets, static_cast<std::uint64_t>(t));
      for (Bucket& bucket : buckets) bucket.gradient.mul_(size);
      step(ours, buckets, {.lr = 0.01, .committed_step = t});
    }
    ends.push_back(buckets[0].weights);
    EXPECT_TRUE(ends.back().equal(ends.front())) << size;
  }
}

// f(w) = |w - target|^2 / 2 with a rate that falls to zero.
TEST(Lion, EndsAtTheOptimumOfAQuadratic) {
  auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  std::vector<at::Tensor> targets;
  for (const Bucket& bucket : buckets) targets.push_back(torch::linspace(-1, 1, bucket.numel()));
  Lion ours(buckets, {}, {});
  constexpr std::int64_t steps = 600;
  for (std::int64_t t = 0; t < steps; ++t) {
    for (std::size_t b = 0; b < buckets.size(); ++b) {
      buckets[b].gradient.copy_(buckets[b].weights - targets[b]);
    }
    const double left = static_cast<double>(steps - t) / steps;
    step(ours, buckets, {.lr = 0.03 * left, .committed_step = t});
  }
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    for (const Slice& slice : buckets[b].slices) {
      const at::Tensor off = part(buckets[b].weights, slice) - part(targets[b], slice);
      EXPECT_LT(off.abs().max().item<double>(), 0.01) << slice.name;
    }
  }
}

TEST(Lion, RefusesOptionsThatCannotBe) {
  const auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  const auto message = [&](const LionOptions& options) -> std::string {
    try {
      Lion(buckets, options, {});
    } catch (const UsageError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message({.beta1 = 1}), "lion: beta1 is 1; give a number from 0, below 1");
  EXPECT_EQ(message({.beta2 = -0.5}), "lion: beta2 is -0.5; give a number from 0, below 1");
  EXPECT_EQ(message({.beta2 = std::nan("")}), "lion: beta2 is nan; give a number from 0, below 1");
  EXPECT_EQ(message({.weight_decay = -1}), "lion: weight_decay is -1; give a number from 0");
}

}  // namespace
}  // namespace thinwire
