#include "runtime/data/image_dataset.h"

#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using Indices = std::vector<std::int64_t>;

// Three samples of 2 channels x 1 x 2 pixels; with mean 0 and deviation 1/255 a byte stands for
// itself, up to the rounding of byte / 255.
ImageDataset small(const Normalization& normalization = {.mean = 0, .standard_deviation = 1.0}) {
  return ImageDataset({.channels = 2, .height = 1, .width = 2},
                      {0, 255, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100}, {4, 0, 2}, 5,
                      normalization);
}

TEST(ImageDatasetTest, DescribesItself) {
  const ImageDataset dataset = small();
  EXPECT_EQ(dataset.size(), 3);
  EXPECT_EQ(dataset.classes(), 5);
  EXPECT_THAT(dataset.sample_shape(), testing::ElementsAre(2, 1, 2));
}

TEST(ImageDatasetTest, GivesTheSamplesAskedForInTheirOrder) {
  const Batch batch = small().batch(Indices{2, 0, 2}, at::kDouble);
  EXPECT_THAT(batch.input.sizes(), testing::ElementsAre(3, 2, 1, 2));
  const double* value = batch.input.data_ptr<double>();
  EXPECT_THAT(
      std::vector<double>(value, value + 12),
      testing::ElementsAre(70 / 255.0, 80 / 255.0, 90 / 255.0, 100 / 255.0, 0, 1, 10 / 255.0,
                           20 / 255.0, 70 / 255.0, 80 / 255.0, 90 / 255.0, 100 / 255.0));
  const std::int64_t* target = batch.target.data_ptr<std::int64_t>();
  EXPECT_THAT(Indices(target, target + 3), testing::ElementsAre(2, 4, 2));
}

TEST(ImageDatasetTest, RoundsToTheTypeAskedFor) {
  const ImageDataset dataset = small({.mean = .2860, .standard_deviation = .3530});
  const at::Tensor exact = dataset.batch(Indices{0, 1, 2}, at::kDouble).input;
  EXPECT_EQ(exact.data_ptr<double>()[1], (1 - .2860) / .3530);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor input = dataset.batch(Indices{0, 1, 2}, dtype).input;
    EXPECT_EQ(input.scalar_type(), dtype);
    EXPECT_TRUE(at::equal(input, exact.to(at::kFloat).to(dtype))) << dtype;
  }
}

TEST(ImageDatasetTest, GivesAnEmptyBatch) {
  const Batch batch = small().batch(Indices{}, at::kFloat);
  EXPECT_THAT(batch.input.sizes(), testing::ElementsAre(0, 2, 1, 2));
  EXPECT_EQ(batch.target.numel(), 0);
}

TEST(ImageDatasetTest, RefusesWhatOnlyABugAsksFor) {
  EXPECT_THROW(small().batch(Indices{3}, at::kFloat), Bug);
  EXPECT_THROW(small().batch(Indices{-1}, at::kFloat), Bug);
  EXPECT_THROW(small().batch(Indices{0}, at::kLong), Bug);
  EXPECT_THROW(ImageDataset({1, 1, 2}, {1, 2, 3}, {0}, 5, {}), Bug);
  EXPECT_THROW(ImageDataset({1, 1, 2}, {1, 2}, {5}, 5, {}), Bug);
}

TEST(ImageDatasetTest, FingerprintTellsEveryDifference) {
  const ImageShape shape{.channels = 1, .height = 1, .width = 2};
  const std::vector<std::uint64_t> fingerprints{
      ImageDataset(shape, {1, 2, 3, 4}, {0, 1}, 5, {}).fingerprint(),
      ImageDataset(shape, {1, 2, 3, 5}, {0, 1}, 5, {}).fingerprint(),
      ImageDataset(shape, {1, 2, 3, 4}, {1, 1}, 5, {}).fingerprint(),
      ImageDataset(shape, {1, 2, 3, 4}, {0, 1}, 6, {}).fingerprint(),
      ImageDataset(shape, {1, 2, 3, 4}, {0, 1}, 5, {.mean = .5}).fingerprint(),
      ImageDataset({1, 2, 1}, {1, 2, 3, 4}, {0, 1}, 5, {}).fingerprint(),
      ImageDataset(shape, {3, 4, 1, 2}, {1, 0}, 5, {}).fingerprint()};
  for (std::size_t i = 0; i < fingerprints.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(fingerprints[i], fingerprints[j]) << i << j;
  }
  EXPECT_EQ(ImageDataset(shape, {1, 2, 3, 4}, {0, 1}, 5, {}).fingerprint(), fingerprints[0]);
}

}  // namespace
}  // namespace thinwire
