#include "optimizers/clipping.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "tests/optimizers/support.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

TEST(SquaredNorm, IsExactOnWholeNumbersAndLeavesGapsOut) {
  for (const at::ScalarType dtype : {torch::kFloat, torch::kDouble}) {
    auto buckets = make_buckets(dtype, dtype);
    fill_gradients(buckets, 1);
    double expected = 0;
    for (Bucket& bucket : buckets) {
      bucket.gradient.mul_(100).round_();
      for (const Slice& slice : bucket.slices) {
        expected += part(bucket.gradient, slice).to(torch::kDouble).square().sum().item<double>();
      }
    }
    EXPECT_EQ(squared_norm(buckets), expected);
  }
}

TEST(SquaredNorm, LeavesSlicesThatRestOut) {
  auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  for (Bucket& bucket : buckets) bucket.gradient.fill_(2);
  EXPECT_EQ(squared_norm(buckets), 4 * (7 + 35 + 27 + 1 + 33));
  resting::set_frozen(buckets[0], 1, true);
  EXPECT_EQ(squared_norm(buckets), 4 * (7 + 27 + 1 + 33));
  buckets[0].slices[0].absent = true;
  EXPECT_EQ(squared_norm(buckets), 4 * (27 + 1 + 33));
}

// 32 lanes, then halves onto each other, with tensors in place of loops over lanes.
double lane_sum(const at::Tensor& values) {
  const std::int64_t rows = (values.numel() + 31) / 32;
  at::Tensor padded = torch::zeros({rows * 32}, torch::kDouble);
  padded.narrow(0, 0, values.numel()).copy_(values);
  const at::Tensor table = padded.view({rows, 32});
  at::Tensor lanes = torch::zeros({32}, torch::kDouble);
  for (std::int64_t row = 0; row < rows; ++row) lanes = lanes + table[row];
  for (std::int64_t half = 16; half > 0; half /= 2) {
    lanes = lanes.narrow(0, 0, half) + lanes.narrow(0, half, half);
  }
  return lanes.item<double>();
}

// Blocks of 1024 squares from each slice's start, then the blocks' sums.
double blockwise_norm(const Bucket& bucket) {
  std::vector<double> sums;
  for (const Slice& slice : bucket.slices) {
    const at::Tensor squares = part(bucket.gradient, slice).flatten().to(torch::kDouble).square();
    for (const at::Tensor& block : squares.split(1024)) {
      if (block.numel() > 0) sums.push_back(lane_sum(block));
    }
  }
  return lane_sum(torch::tensor(sums, torch::kDouble));
}

TEST(SquaredNorm, IsSummedInTheDocumentedOrder) {
  for (const std::int64_t numel : {1, 31, 32, 33, 1000, 1024, 1025, 50000}) {
    std::vector<Bucket> buckets(1);
    buckets[0].gradient = torch::zeros({numel + 1500}, torch::kFloat);
    buckets[0].slices = {Slice{.name = "a", .shape = {numel}, .numel = numel},
                         Slice{.name = "b", .shape = {1499}, .offset = numel + 1, .numel = 1499}};
    fill_gradients(buckets, static_cast<std::uint64_t>(numel));
    EXPECT_EQ(squared_norm(buckets), blockwise_norm(buckets[0])) << numel;
  }
}

TEST(SquaredNorm, ShowsNonFiniteGradients) {
  auto buckets = make_buckets(torch::kFloat, torch::kFloat);
  buckets[1].gradient[20] = infinity;
  EXPECT_EQ(squared_norm(buckets), infinity);
  buckets[0].gradient[20] = nan;
  EXPECT_TRUE(std::isnan(squared_norm(buckets)));
}

TEST(SquaredNorm, OfNothingIsZero) {
  EXPECT_EQ(squared_norm({}), 0);
}

TEST(ClipScale, EqualsTorchClipGradNorm) {
  for (const double max_norm : {0.1, 3.0, 1000.0}) {
    auto buckets = make_buckets(torch::kDouble, torch::kDouble);
    fill_gradients(buckets, 5);
    auto leaves = make_leaves(buckets);
    copy_gradients(buckets, 1, leaves);
    const double norm = std::sqrt(squared_norm(buckets));
    EXPECT_NEAR(norm, torch::nn::utils::clip_grad_norm_(leaves, max_norm), 1e-13 * norm);
    const double scale = clip_scale(norm, max_norm);
    EXPECT_TRUE(torch::allclose(leaves[1].grad(),
                                part(buckets[0].gradient, buckets[0].slices[1]) * scale, 1e-13, 0));
  }
}

TEST(ClipScale, IsExactlyOneWhenNothingIsClipped) {
  EXPECT_EQ(clip_scale(0.999, 1), 1);
  EXPECT_EQ(clip_scale(0, 1), 1);
  EXPECT_EQ(clip_scale(0, 0.5e-6), 0.5);
  EXPECT_EQ(clip_scale(4 - 1e-6, 1), 0.25);
}

TEST(ClipScale, OfNormsThatAreNotFinite) {
  EXPECT_EQ(clip_scale(infinity, 1), 0);
  EXPECT_TRUE(std::isnan(clip_scale(nan, 1)));
}

}  // namespace
}  // namespace thinwire
