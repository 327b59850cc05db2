#include "runtime/buckets/gradient_buckets.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

std::vector<Parameter> parameters(
    const std::vector<std::pair<std::vector<std::int64_t>, at::ScalarType>>& kinds) {
  std::vector<Parameter> list;
  for (const auto& [shape, dtype] : kinds) {
    list.push_back(
        {fmt::format("p{}", list.size()),
         torch::randn(shape, torch::dtype(at::kFloat)).to(dtype).set_requires_grad(true)});
  }
  return list;
}

TEST(GradientBuckets, LaysOutBackwardsWithASmallFirstBucket) {
  // 1,000 floats each: the first bucket takes one (4,000 bytes >= 3,000), the next ones two.
  auto list = parameters({{{1000}, at::kFloat},
                          {{10, 100}, at::kFloat},
                          {{1000}, at::kFloat},
                          {{1000}, at::kFloat},
                          {{1000}, at::kFloat}});
  GradientBuckets buckets(list, {.bucket_bytes = 8000, .first_bucket_bytes = 3000});
  ASSERT_EQ(buckets.buckets().size(), 3u);
  EXPECT_EQ(buckets.buckets()[0].slices[0].name, "p4");
  EXPECT_EQ(buckets.buckets()[1].slices[0].name, "p3");
  EXPECT_EQ(buckets.buckets()[1].slices[1].name, "p2");
  EXPECT_EQ(buckets.buckets()[2].slices[1].name, "p0");
  for (std::size_t i = 0; i < list.size(); ++i) {
    EXPECT_EQ(buckets.slice(i).name, list[i].name);
    EXPECT_EQ(buckets.slice(i).offset % 16, 0);
  }
}

TEST(GradientBuckets, FlattenedWeightsKeepTheirValuesAndAliasTheBucket) {
  auto list = parameters({{{3, 5}, at::kFloat}, {{7}, at::kFloat}});
  const at::Tensor before = list[0].tensor.detach().clone();
  GradientBuckets buckets(list);
  EXPECT_TRUE(list[0].tensor.detach().equal(before));
  buckets.buckets()[0].weights.fill_(2.0f);
  EXPECT_TRUE(list[0].tensor.detach().equal(torch::full({3, 5}, 2.0f)));
}

TEST(GradientBuckets, UntouchedWeightsStayWhereTheyAre) {
  auto list = parameters({{{3, 5}, at::kFloat}});
  const void* where = list[0].tensor.data_ptr();
  GradientBuckets buckets(list, {.weights = WeightStorage::untouched});
  EXPECT_EQ(list[0].tensor.data_ptr(), where);
  EXPECT_FALSE(buckets.buckets()[0].weights.defined());
}

TEST(GradientBuckets, OneDtypePerBucketAnd32BitGradientsFor16BitParameters) {
  auto list =
      parameters({{{8}, at::kFloat}, {{8}, at::kBFloat16}, {{8}, at::kDouble}, {{8}, at::kFloat}});
  GradientBuckets buckets(list);
  ASSERT_EQ(buckets.buckets().size(), 3u);
  for (const Bucket& bucket : buckets.buckets()) {
    const auto weights = bucket.weights.scalar_type();
    EXPECT_EQ(bucket.gradient.scalar_type(), weights == at::kBFloat16 ? at::kFloat : weights);
  }
  // Autograd accumulates a 16-bit parameter's gradient into the 32-bit alias: 256 + 1 is not a
  // bfloat16, but it is a float.
  buckets.attach(1);
  (list[1].tensor * 256).sum().backward();
  list[1].tensor.sum().backward();
  EXPECT_TRUE(list[1].tensor.grad().equal(torch::full({8}, 257.0f)));
  EXPECT_EQ(list[1].tensor.grad().data_ptr(),
            buckets.buckets()[buckets.place(1).bucket].gradient.data_ptr());
}

TEST(GradientBuckets, AGradientAliasSurvivesWhatOptimizersDoToGradients) {
  auto list = parameters({{{4, 2}, at::kFloat}, {{6}, at::kFloat}});
  GradientBuckets buckets(list);
  buckets.attach(0);
  torch::optim::SGD optimizer({list[0].tensor}, 0.1);
  (list[0].tensor * 3).sum().backward();
  optimizer.zero_grad(/*set_to_none=*/false);  // detaches and zeroes; throws on a view
  EXPECT_EQ(list[0].tensor.grad().data_ptr<float>(),
            buckets.buckets()[0].gradient.data_ptr<float>() + buckets.slice(0).offset);
  optimizer.zero_grad();
  EXPECT_FALSE(list[0].tensor.grad().defined());
  buckets.attach(0);
  EXPECT_TRUE(list[0].tensor.grad().defined());
}

TEST(GradientBuckets, AliasesFollowAnExchangedBuffer) {
  auto list = parameters({{{4}, at::kFloat}});
  GradientBuckets buckets(list);
  Bucket& bucket = buckets.buckets()[0];
  buckets.attach(0);
  at::Tensor other = torch::full_like(bucket.gradient, 5.0f);
  std::swap(bucket.gradient, other);
  buckets.attach(0);
  EXPECT_TRUE(list[0].tensor.grad().equal(torch::full({4}, 5.0f)));
}

TEST(GradientBuckets, RefusesWhatItCannotHold) {
  EXPECT_THROW(GradientBuckets({{"a", torch::zeros({2})}, {"a", torch::zeros({2})}}), UsageError);
  const at::Tensor tied = torch::zeros({2});
  EXPECT_THROW(GradientBuckets({{"a", tied}, {"b", tied}}), UsageError);
  EXPECT_THROW(GradientBuckets({}), UsageError);
  EXPECT_THROW(GradientBuckets({{"i", torch::zeros({2}, torch::kLong)}}), UsageError);
  EXPECT_THROW(GradientBuckets({{"e", torch::zeros({1}).expand({4})}}), UsageError);
  // Kernels of float64 are for tests on a GPU; of a device without memory, to have one here.
  const auto elsewhere = torch::TensorOptions().device(torch::kMeta);
  EXPECT_THROW(GradientBuckets({{"d", torch::zeros({2}, elsewhere.dtype(torch::kDouble))}}),
               UsageError);
}

}  // namespace
}  // namespace thinwire
