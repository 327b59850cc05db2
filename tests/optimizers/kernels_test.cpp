// The optimizers' kernels over whole buckets: against the optimizers, which step slice by slice,
// and against the formulas, number by number.
#include "optimizers/kernels/kernels.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "optimizers/adam.h"
#include "optimizers/sgd.h"
#include "tests/optimizers/support.h"

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
    if (slice.frozen) continue;
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

TYPED_TEST(OptimizerKernelsTest, SgdOfABucketEqualsTheOptimizer) {
  using T = TypeParam;
  for (const SgdOptions& options :
       {SgdOptions{0, 0, 0.05, false}, SgdOptions{0.9, 0.3, 0.05, false},
        SgdOptions{0.9, 0, 0.05, true}}) {
    auto expected = make_buckets(this->dtype, this->dtype);
    expected[0].slices[1].frozen = true;
    auto got = clone(expected);
    Sgd optimizer(expected, options, two_rules());
    std::vector<at::Tensor> momentum;
    for (const Bucket& bucket : got) momentum.push_back(torch::zeros_like(bucket.weights));
    for (std::int64_t t = 0; t < steps; ++t) {
      fill_gradients(expected, static_cast<std::uint64_t>(t));
      const StepParameters parameters = parameters_of(t);
      step(optimizer, expected, parameters);
      for (std::size_t b = 0; b < got.size(); ++b) {
        const auto table = table_of(got[b], options.weight_decay);
        this->kernels.sgd(
            {.slices = table.data(),
             .slice_count = std::ssize(table),
             .numel = got[b].numel(),
             .weights = got[b].weights.template mutable_data_ptr<T>(),
             .gradient = expected[b].gradient.template const_data_ptr<T>(),
             .momentum =
                 options.momentum > 0 ? momentum[b].template mutable_data_ptr<T>() : nullptr,
             .step = {.lr = parameters.lr,
                      .gradient_scale = parameters.gradient_scale,
                      .momentum = options.momentum,
                      .take = t == 0 ? 1 : 1 - options.dampening,
                      .direct = options.nesterov ? 1.0 : 0.0,
                      .buffered = options.nesterov ? options.momentum : 1.0}},
            nullptr);
        EXPECT_TRUE(got[b].weights.equal(expected[b].weights)) << "bucket " << b << ", step " << t;
      }
    }
  }
}

TYPED_TEST(OptimizerKernelsTest, AdamOfABucketEqualsTheOptimizer) {
  using T = TypeParam;
  for (const WeightDecay decay : {WeightDecay::coupled, WeightDecay::decoupled}) {
    for (const bool amsgrad : {false, true}) {
      const AdamOptions options{.weight_decay = 0.05, .amsgrad = amsgrad};
      auto expected = make_buckets(this->dtype, this->dtype);
      expected[0].slices[1].frozen = true;
      auto got = clone(expected);
      Adam optimizer(expected, options, decay, two_rules());
      std::vector<std::array<at::Tensor, 3>> state;
      for (const Bucket& bucket : got) {
        const at::Tensor zeros = torch::zeros_like(bucket.weights);
        state.push_back({zeros.clone(), zeros.clone(), zeros.clone()});
      }
      for (std::int64_t t = 0; t < steps; ++t) {
        fill_gradients(expected, static_cast<std::uint64_t>(t));
        const StepParameters parameters = parameters_of(t);
        step(optimizer, expected, parameters);
        for (std::size_t b = 0; b < got.size(); ++b) {
          const auto table = table_of(got[b], options.weight_decay);
          const double power = static_cast<double>(t + 1);
          this->kernels.adam(
              {.slices = table.data(),
               .slice_count = std::ssize(table),
               .numel = got[b].numel(),
               .weights = got[b].weights.template mutable_data_ptr<T>(),
               .gradient = expected[b].gradient.template const_data_ptr<T>(),
               .exp_avg = state[b][0].template mutable_data_ptr<T>(),
               .exp_avg_sq = state[b][1].template mutable_data_ptr<T>(),
               .max_exp_avg_sq = amsgrad ? state[b][2].template mutable_data_ptr<T>() : nullptr,
               .step = {.lr = parameters.lr,
                        .gradient_scale = parameters.gradient_scale,
                        .decay = decay,
                        .bias1 = 1 - std::pow(options.beta1, power),
                        .sqrt_bias2 = std::sqrt(1 - std::pow(options.beta2, power))}},
              nullptr);
          EXPECT_TRUE(got[b].weights.equal(expected[b].weights))
              << "bucket " << b << ", step " << t;
        }
      }
    }
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
  const SgdStep sgd{
      .lr = 5, .gradient_scale = 0.9, .momentum = 0.8, .take = 0.6, .direct = 0.7, .buffered = 0.9};
  this->kernels.sgd({.slices = &slice,
                     .slice_count = 1,
                     .numel = bucket.numel(),
                     .weights = weights.template mutable_data_ptr<T>(),
                     .gradient = gradient,
                     .momentum = first.template mutable_data_ptr<T>(),
                     .step = sgd},
                    nullptr);
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
  const AdamStep adam{.lr = 5,
                      .gradient_scale = 0.9,
                      .beta1 = 0.3,
                      .beta2 = 0.4,
                      .decay = WeightDecay::decoupled,
                      .bias1 = 0.19,
                      .sqrt_bias2 = 0.07};
  this->kernels.adam({.slices = &slice,
                      .slice_count = 1,
                      .numel = bucket.numel(),
                      .weights = weights.template mutable_data_ptr<T>(),
                      .gradient = gradient,
                      .exp_avg = first.template mutable_data_ptr<T>(),
                      .exp_avg_sq = second.template mutable_data_ptr<T>(),
                      .step = adam},
                     nullptr);
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
}

TYPED_TEST(OptimizerKernelsTest, TheNormOfNothingIsZero) {
  double result = 7;
  this->kernels.squared_norm({.result = &result}, nullptr);
  EXPECT_EQ(result, 0);
}

}  // namespace
}  // namespace thinwire
