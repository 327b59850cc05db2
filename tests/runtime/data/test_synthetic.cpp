#include "runtime/data/synthetic.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace thinwire {
namespace {

Batch everything(const Dataset& dataset) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(dataset.size()));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  return dataset.batch(all, at::kDouble);
}

// The mean image of each class, [classes, pixels]: what a linear model learns at once.
at::Tensor class_means(const Batch& batch, std::int64_t classes) {
  const at::Tensor input = batch.input.flatten(1);
  at::Tensor sum = at::zeros({classes, input.size(1)}, at::kDouble);
  at::Tensor count = at::zeros({classes, 1}, at::kDouble);
  for (std::int64_t i = 0; i < input.size(0); ++i) {
    const std::int64_t label = batch.target.data_ptr<std::int64_t>()[i];
    sum[label] += input[i];
    count[label] += 1;
  }
  return sum / count;
}

double linear_accuracy(const SyntheticOptions& options) {
  const DataSplit split = make_synthetic(options);
  const at::Tensor means = class_means(everything(*split.train), options.classes);
  const Batch test = everything(*split.test);
  const at::Tensor score =
      test.input.flatten(1).matmul(means.t()) - .5 * means.square().sum(1).unsqueeze(0);
  return score.argmax(1).eq(test.target).to(at::kDouble).mean().item<double>();
}

TEST(SyntheticTest, IsAFunctionOfItsOptions) {
  const SyntheticOptions options{.samples = 50, .test_samples = 20};
  const DataSplit first = make_synthetic(options);
  const DataSplit second = make_synthetic(options);
  EXPECT_EQ(first.train->fingerprint(), second.train->fingerprint());
  EXPECT_EQ(first.test->fingerprint(), second.test->fingerprint());
  EXPECT_TRUE(at::equal(everything(*first.train).input, everything(*second.train).input));
  SyntheticOptions other = options;
  other.seed = 2;
  EXPECT_NE(make_synthetic(other).train->fingerprint(), first.train->fingerprint());
}

TEST(SyntheticTest, ASampleDoesNotDependOnHowManyThereAre) {
  const Batch few = everything(*make_synthetic({.samples = 20, .test_samples = 1}).train);
  const Batch many = everything(*make_synthetic({.samples = 40, .test_samples = 1}).train);
  EXPECT_TRUE(at::equal(few.input, many.input.narrow(0, 0, 20)));
}

TEST(SyntheticTest, TrainAndTestSamplesDifferButShareTheirClasses) {
  const SyntheticOptions options{.samples = 1000, .test_samples = 1000};
  const DataSplit split = make_synthetic(options);
  const Batch train = everything(*split.train);
  const Batch test = everything(*split.test);
  EXPECT_FALSE(at::equal(train.input[0], test.input[0]));
  EXPECT_FALSE(at::equal(train.input[0], train.input[10]));  // of the same class
  // The means of 100 samples whose noise has variance 1/2.
  const at::Tensor difference = class_means(train, 10) - class_means(test, 10);
  EXPECT_NEAR(difference.square().mean().item<double>(), 2 * .5 / 100, .001);
}

TEST(SyntheticTest, ClassesTakeTurns) {
  const Batch batch = everything(*make_synthetic({.samples = 7, .classes = 3}).train);
  const std::int64_t* target = batch.target.data_ptr<std::int64_t>();
  EXPECT_THAT(std::vector<std::int64_t>(target, target + 7),
              testing::ElementsAre(0, 1, 2, 0, 1, 2, 0));
}

TEST(SyntheticTest, WithoutNoiseSamplesAreTiles) {
  const DataSplit split =
      make_synthetic({.samples = 12, .classes = 6, .channels = 3, .size = 14, .noise = 0});
  const Batch batch = everything(*split.train);
  EXPECT_TRUE(at::equal(batch.input.narrow(0, 0, 6), batch.input.narrow(0, 6, 6)));
  // 7 x 7 tiles of 2 x 2 pixels, of which all channels and classes have their own.
  const at::Tensor tiles = batch.input.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4);
  EXPECT_TRUE(at::equal(tiles.amax(4), tiles.amin(4)));
  EXPECT_FALSE(at::equal(batch.input.select(1, 0), batch.input.select(1, 1)));
  EXPECT_FALSE(at::equal(batch.input[0], batch.input[1]));
}

TEST(SyntheticTest, IsNormalisedWhateverTheNoise) {
  for (const double noise : {.5, 1.0, 20.0}) {
    const Batch batch = everything(
        *make_synthetic({.samples = 200, .test_samples = 1, .classes = 200, .noise = noise}).train);
    // 200 prototypes of 49 tiles: six sigma of a mean of 9,800 draws.
    EXPECT_NEAR(batch.input.mean().item<double>(), 0, .06) << noise;
    EXPECT_NEAR(batch.input.var().item<double>(), 1, .06) << noise;
  }
}

TEST(SyntheticTest, ALinearModelLearnsItAndNoiseMakesItHard) {
  EXPECT_GT(linear_accuracy({}), .99);
  EXPECT_LT(linear_accuracy({.noise = 100}), .5);
}

}  // namespace
}  // namespace thinwire
