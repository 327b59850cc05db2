// The optimizers' kernels over whole buckets: against the optimizers, which step slice by slice,
// between vectors of every kind, and against the formulas, number by number.
#include "optimizers/kernels/kernels.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "optimizers/factory.h"
#include "optimizers/kernels/host.h"
#include "tests/optimizers/cases.h"
#include "tests/optimizers/support.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

constexpr std::int64_t steps = 20;

GroupRules two_rules() {
  return {{.rank = SliceRank::vectors, .weight_decay = 0.0},
          {.rank = SliceRank::matrices, .lr_scale = 0.3}};
}

// The table of all slices that move.
std::vector<StepSlice> table_of(const Bucket& bucket, double weight_decay) {
  std::vector<StepSlice> table;
  for (const Slice& slice : bucket.slices) {
    if (resting::is_frozen(bucket, slice)) continue;
    const ParameterGroup group = resolve_group(two_rules(), slice, {weight_decay, 1});
    table.push_back({slice.offset, slice.numel, group.weight_decay, group.lr_scale});
  }
  return table;
}

StepParameters parameters_of(std::int64_t t) {
  return {.lr = 0.02 * (1.5 + std::sin(static_cast<double>(t))),
          .gradient_scale = t % 3 == 0 ? 0.37 : 1,
          .committed_step = t};
}

template <typename T>
class OptimizerKernelsTest : public testing::Test {
 public:
  static constexpr at::ScalarType dtype =
      std::is_same_v<T, double> ? torch::kDouble : torch::kFloat;
  const OptimizerKernels<T> kernels = host_optimizer_kernels<T>();
};
using BothTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(OptimizerKernelsTest, BothTypes);

TYPED_TEST(OptimizerKernelsTest, AStepOfABucketEqualsTheOptimizers) {
  using T = TypeParam;
  for (const std::string& text : rule_cases()) {
    SCOPED_TRACE(text);
    auto expected = make_buckets(this->dtype, this->dtype);
    resting::set_frozen(expected[0], 1, true);
    auto got = clone(expected);
    const auto optimizer = make_optimizer(text, {}, expected, two_rules());
    EXPECT_TRUE(with_rule(text, [&](auto rule, const auto& options) {
      using Rule = decltype(rule);
      std::vector<at::Tensor> state;
      const auto count = static_cast<std::int64_t>(Rule::state(options).size());
      for (const Bucket& bucket : got) {
        state.push_back(torch::zeros({count, bucket.numel()}, this->dtype));
      }
      for (std::int64_t t = 0; t < steps; ++t) {
        fill_gradients(expected, static_cast<std::uint64_t>(t));
        step(*optimizer, expected, parameters_of(t));
        for (std::size_t b = 0; b < got.size(); ++b) {
          const auto table = table_of(got[b], options.weight_decay);
          BucketView<T> view;
          view.slices = table.data();
          view.slice_count = std::ssize(table);
          view.numel = got[b].numel();
          view.weights = got[b].weights.template mutable_data_ptr<T>();
          view.gradient = expected[b].gradient.template const_data_ptr<T>();
          for (std::int64_t k = 0; k < count; ++k) {
            view.state[k] = state[b][k].template mutable_data_ptr<T>();
          }
          view.state_count = static_cast<int>(count);
          this->kernels.template step<Rule>(view, Rule::step(options, parameters_of(t)), nullptr);
          EXPECT_TRUE(got[b].weights.equal(expected[b].weights))
              << "bucket " << b << ", step " << t;
        }
      }
    }));
  }
}

// Each rounding in its place: every operation of the formula is one operation on T. All terms are
// of one size, so that no rounding is lost in a larger one.
TYPED_TEST(OptimizerKernelsTest, RoundsAsTheFormulasAreWritten) {
  using T = TypeParam;
  auto buckets = make_buckets(this->dtype, this->dtype);
  fill_gradients(buckets, 3);
  const Bucket& bucket = buckets[0];
  const StepSlice slice{bucket.slices[1].offset, bucket.slices[1].numel, 0.05, 0.3};
  const T* gradient = bucket.gradient.template const_data_ptr<T>();
  const at::Tensor start = bucket.weights.clone();

  at::Tensor weights = start.clone();
  at::Tensor first = torch::full_like(start, 0.2);
  at::Tensor second = torch::full_like(start, 0.01);
  const auto view = [&](int state_count) {
    return BucketView<T>{
        &slice,
        1,
        bucket.numel(),
        weights.template mutable_data_ptr<T>(),
        gradient,
        {first.template mutable_data_ptr<T>(), second.template mutable_data_ptr<T>()},
        state_count};
  };
  const SgdRule::Step sgd{
      .lr = 5, .gradient_scale = 0.9, .momentum = 0.8, .take = 0.6, .direct = 0.7, .buffered = 0.9};
  this->kernels.template step<SgdRule>(view(1), sgd, nullptr);
  for (std::int64_t i = slice.offset; i < slice.offset + slice.numel; ++i) {
    const volatile T w = start.template const_data_ptr<T>()[i];
    const volatile T scaled = static_cast<T>(0.9) * gradient[i];
    const volatile T decay = static_cast<T>(0.05) * w;
    const volatile T d = scaled + decay;
    const volatile T kept = static_cast<T>(0.8) * static_cast<T>(0.2);
    const volatile T taken = static_cast<T>(0.6) * d;
    const volatile T next = kept + taken;
    const volatile T direct = static_cast<T>(0.7) * d;
    const volatile T buffered = static_cast<T>(0.9) * next;
    const volatile T direction = direct + buffered;
    const volatile T move = static_cast<T>(5 * 0.3) * direction;
    EXPECT_EQ(first.template const_data_ptr<T>()[i], next);
    EXPECT_EQ(weights.template const_data_ptr<T>()[i], w - move);
  }

  weights = start.clone();
  first.fill_(0.2);
  const AdamRule::Step adam{.lr = 5,
                            .gradient_scale = 0.9,
                            .beta1 = 0.3,
                            .beta2 = 0.4,
                            .bias1 = 0.19,
                            .sqrt_bias2 = 0.07,
                            .decoupled_weight_decay = true};
  this->kernels.template step<AdamRule>(view(2), adam, nullptr);
  for (std::int64_t i = slice.offset; i < slice.offset + slice.numel; ++i) {
    const volatile T w = start.template const_data_ptr<T>()[i];
    const volatile T g = static_cast<T>(0.9) * gradient[i];
    const volatile T m_kept = static_cast<T>(0.3) * static_cast<T>(0.2);
    const volatile T m_taken = static_cast<T>(1 - 0.3) * g;
    const volatile T m = m_kept + m_taken;
    const volatile T v_kept = static_cast<T>(0.4) * static_cast<T>(0.01);
    const volatile T v_once = static_cast<T>(1 - 0.4) * g;
    const volatile T v_taken = v_once * g;
    const volatile T v = v_kept + v_taken;
    const volatile T root = std::sqrt(static_cast<T>(v));
    const volatile T corrected = root / static_cast<T>(0.07);
    const volatile T below = corrected + static_cast<T>(1e-8);
    const double lr = 5 * 0.3;
    const volatile T above = static_cast<T>(lr / 0.19) * m;
    const volatile T shrunk = static_cast<T>(1 - lr * 0.05) * w;
    const volatile T quotient = above / below;
    EXPECT_EQ(first.template const_data_ptr<T>()[i], m);
    EXPECT_EQ(second.template const_data_ptr<T>()[i], v);
    EXPECT_EQ(weights.template const_data_ptr<T>()[i], shrunk - quotient);
  }

  weights = start.clone();
  first.fill_(0.2);
  const LionRule::Step lion{.lr = 5, .gradient_scale = 0.9, .beta1 = 0.3, .beta2 = 0.4};
  this->kernels.template step<LionRule>(view(1), lion, nullptr);
  for (std::int64_t i = slice.offset; i < slice.offset + slice.numel; ++i) {
    const volatile T w = start.template const_data_ptr<T>()[i];
    const volatile T g = static_cast<T>(0.9) * gradient[i];
    const volatile T mixed_kept = static_cast<T>(0.3) * static_cast<T>(0.2);
    const volatile T mixed_taken = static_cast<T>(1 - 0.3) * g;
    const volatile T mixed = mixed_kept + mixed_taken;
    const volatile T m_kept = static_cast<T>(0.4) * static_cast<T>(0.2);
    const volatile T m_taken = static_cast<T>(1 - 0.4) * g;
    const volatile T decay = static_cast<T>(0.05) * w;
    const volatile T direction = static_cast<T>(mixed > 0 ? 1 : -1) + decay;
    const volatile T move = static_cast<T>(5 * 0.3) * direction;
    EXPECT_EQ(first.template const_data_ptr<T>()[i], m_kept + m_taken);
    EXPECT_EQ(weights.template const_data_ptr<T>()[i], w - move);
  }
}

TYPED_TEST(OptimizerKernelsTest, EveryKindOfVectorsHasTheSameBits) {
  using T = TypeParam;
  constexpr std::int64_t numel = 1037;
  const StepSlice slice{.offset = 3, .numel = numel - 5, .weight_decay = 0.1, .lr_scale = 0.5};
  const at::Tensor start = torch::rand({5, numel}, this->dtype);
  for (const std::string& text : rule_cases()) {
    EXPECT_TRUE(with_rule(text, [&](auto rule, const auto& options) {
      using Rule = decltype(rule);
      at::Tensor expected;
      for (const auto& [target, table] : host_optimizer_kernels_by_target<T>()) {
        const at::Tensor x = start.clone();
        BucketView<T> view;
        view.slices = &slice;
        view.slice_count = 1;
        view.numel = numel;
        view.weights = x[0].template mutable_data_ptr<T>();
        view.gradient = x[1].template const_data_ptr<T>();
        for (int k = 0; k < max_states; ++k) {
          view.state[k] = x[2 + k].template mutable_data_ptr<T>();
        }
        view.state_count = static_cast<int>(Rule::state(options).size());
        table.template step<Rule>(view, Rule::step(options, parameters_of(3)), nullptr);
        EXPECT_FALSE(x.equal(start));
        if (!expected.defined()) expected = x;
        EXPECT_TRUE(x.equal(expected)) << text << ", " << target;
      }
    }));
  }
}

// Calls `body(Rule{}, step, states)` for every rule of optimizers that exchange their momentum.
template <typename Body>
void for_each_momentum_rule(const Body& body) {
  body(OwnMomentumRule(), OwnMomentumRule::Step{.keep = 0.7, .take = 0.3}, 1);
  body(CommonSgdRule(), CommonSgdRule::Step{.lr = 0.02, .scale = 0.37}, 1);
  const FrozenAdamStep frozen{.lr = 0.02, .scale = 0.37, .bias1 = 0.99, .bias2 = 0.6};
  body(FrozenAdamRule(), FrozenAdamRule::Step{frozen}, 2);
  body(RefreshAdamRule(), RefreshAdamRule::Step{frozen}, 2);
}

TYPED_TEST(OptimizerKernelsTest, MomentumRulesHaveTheSameBitsForEveryKindOfVectors) {
  using T = TypeParam;
  constexpr std::int64_t numel = 1037;
  const StepSlice slice{.offset = 3, .numel = numel - 5, .weight_decay = 0.1, .lr_scale = 0.5};
  const at::Tensor start = torch::rand({4, numel}, this->dtype);
  start[3].slice(0, 100, 200).zero_();  // a variance of 0
  for_each_momentum_rule([&](auto rule, const auto& step, int states) {
    using Rule = decltype(rule);
    at::Tensor expected;
    for (const auto& [target, table] : host_optimizer_kernels_by_target<T>()) {
      const at::Tensor x = start.clone();
      BucketView<T> view;
      view.slices = &slice;
      view.slice_count = 1;
      view.numel = numel;
      view.weights = x[0].template mutable_data_ptr<T>();
      view.gradient = x[1].template const_data_ptr<T>();
      view.state[0] = x[2].template mutable_data_ptr<T>();
      view.state[1] = x[3].template mutable_data_ptr<T>();
      view.state_count = states;
      table.template step<Rule>(view, step, nullptr);
      EXPECT_FALSE(x.equal(start));
      if (!expected.defined()) expected = x;
      EXPECT_TRUE(x.equal(expected)) << typeid(Rule).name() << ", " << target;
    }
  });
}

TYPED_TEST(OptimizerKernelsTest, EveryKindOfVectorsHasTheSameNorm) {
  using T = TypeParam;
  const at::Tensor values = torch::rand({1037}, this->dtype);
  const std::vector<NormBlock> blocks = {{3, 1024}, {1027, 7}};
  std::vector<double> norms;
  for (const auto& [target, table] : host_optimizer_kernels_by_target<T>()) {
    std::vector<double> sums(2);
    table.squared_norm({.blocks = blocks.data(),
                        .block_count = 2,
                        .values = values.template const_data_ptr<T>(),
                        .block_sums = sums.data(),
                        .result = &norms.emplace_back()},
                       nullptr);
    EXPECT_GT(norms.back(), 0);
    EXPECT_EQ(norms.back(), norms.front()) << target;
  }
}

TYPED_TEST(OptimizerKernelsTest, TheNormOfNothingIsZero) {
  double result = 7;
  this->kernels.squared_norm({.result = &result}, nullptr);
  EXPECT_EQ(result, 0);
}

}  // namespace
}  // namespace thinwire
