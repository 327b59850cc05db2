#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <set>

#include "collectives/base/error.h"
#include "collectives/base/philox.h"
#include "runtime/layers/dropout_mask.h"
#include "runtime/layers/philox_dropout.h"

namespace thinwire {
namespace {

// Element i is dropped where word i mod 4 of block i / 4 is below probability * 2^32.
TEST(DropoutMaskTest, IsItsDefinition) {
  const std::uint64_t stream = 0x123456789abcdef0;
  for (const double probability : {0.0, 0.1, 0.5, 0.99}) {
    for (const std::int64_t size : {1, 3, 4, 5, 1001, 50'000}) {
      const at::Tensor mask = dropout_mask(at::empty({size}, at::kDouble), probability, 9, stream);
      const Philox draws(9, PhiloxStream::dropout, stream);
      const double* value = mask.const_data_ptr<double>();
      for (std::int64_t i = 0; i < size; ++i) {
        const auto word = draws.block(static_cast<std::uint64_t>(i / 4))[i % 4];
        const bool dropped = word < probability * 0x1p32;
        ASSERT_EQ(value[i], dropped ? 0 : 1 / (1 - probability)) << probability << " " << i;
      }
    }
  }
}

TEST(DropoutMaskTest, OperationsOnAnyDeviceGiveTheSameBits) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    const at::Tensor input = at::empty({7, 11, 13}, dtype);
    for (const double probability : {0.0, 0.1, 0.75}) {
      const std::uint64_t seed = 0xfedcba9876543210;
      const std::uint64_t stream = 0x8899aabbccddeeff;
      const at::Tensor mask = dropout_mask(input, probability, seed, stream);
      EXPECT_EQ(mask.scalar_type(), dtype);
      EXPECT_TRUE(mask.equal(detail::dropout_mask_by_operations(input, probability, seed, stream)));
    }
  }
}

TEST(DropoutMaskTest, DoesNotDependOnThreads) {
  const at::Tensor input = at::empty({300'001});
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = dropout_mask(input, 0.3, 1, 2);
  at::set_num_threads(4);
  EXPECT_TRUE(dropout_mask(input, 0.3, 1, 2).equal(one));
  at::set_num_threads(threads);
}

TEST(DropoutMaskTest, KeepsTheExpectation) {
  constexpr std::int64_t kSize = 1 << 20;
  for (const double probability : {0.1, 0.5}) {
    const at::Tensor mask = dropout_mask(at::empty({kSize}, at::kDouble), probability, 1, 2);
    // A mask's variance is p / (1 - p).
    const double sigma = std::sqrt(probability / (1 - probability) / kSize);
    EXPECT_NEAR(mask.mean().item<double>(), 1, 6 * sigma);
  }
}

TEST(PhiloxDropoutTest, IsTheIdentityWithoutProbabilityAndInEvaluation) {
  const at::Tensor input = at::rand({4, 4});
  EXPECT_TRUE(PhiloxDropout(0).forward(input).is_same(input));
  PhiloxDropout half(0.5);
  half.eval();
  EXPECT_TRUE(half.forward(input).is_same(input));
}

TEST(PhiloxDropoutTest, ScalesInputAndGradientByTheSameMask) {
  PhiloxDropout dropout(0.25);
  begin_forward(dropout, {});
  const at::Tensor input = at::rand({64, 64}).requires_grad_();
  const at::Tensor output = dropout.forward(input);
  output.sum().backward();
  EXPECT_TRUE((input * input.grad()).equal(output));
  const at::Tensor kept = input.grad().ne(0);
  EXPECT_TRUE(input.grad().masked_select(kept).eq(static_cast<float>(1 / .75)).all().item<bool>());
  EXPECT_NEAR(kept.to(at::kDouble).mean().item<double>(), .75, 6 * std::sqrt(.25 * .75 / 4096));
}

// Two layers of one pass, two uses of one layer, ranks, steps, micro-batches, seeds: all differ.
TEST(PhiloxDropoutTest, EveryPlaceHasAMaskOfItsOwn) {
  torch::nn::Sequential net;
  net->push_back("a", std::make_shared<PhiloxDropout>(0.5));
  net->push_back("b", std::make_shared<PhiloxDropout>(0.5));
  std::set<std::vector<float>> masks;
  std::size_t drawn = 0;
  for (const std::uint64_t seed : {1, 2}) {
    for (const std::int64_t step : {0, 1}) {
      for (const std::int64_t rank : {0, 1}) {
        for (const std::int64_t micro_batch : {0, 1}) {
          begin_forward(*net, {seed, step, rank, micro_batch});
          for (const std::size_t layer : {0, 1, 0}) {
            const at::Tensor mask = net[layer]->as<PhiloxDropout>()->forward(at::ones({64}));
            masks.insert({mask.const_data_ptr<float>(), mask.const_data_ptr<float>() + 64});
            ++drawn;
          }
        }
      }
    }
  }
  EXPECT_EQ(masks.size(), drawn);
}

TEST(PhiloxDropoutTest, RefusesAPassThatWasNotBegunAndBadProbabilities) {
  EXPECT_THROW(PhiloxDropout(0.5).forward(at::ones({4})), Bug);
  EXPECT_THROW(PhiloxDropout(1), Bug);
  EXPECT_THROW(PhiloxDropout(-0.1), Bug);
  EXPECT_THROW(dropout_mask(at::ones({4}, at::kLong), 0.5, 1, 1), Bug);
}

}  // namespace
}  // namespace thinwire
