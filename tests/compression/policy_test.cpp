// Which tensors stay uncompressed, and why.
#include "collectives/compression/policy.h"

#include <gtest/gtest.h>

#include "collectives/base/error.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/support.h"
#include "tests/reference/reducer.h"

namespace thinwire {
namespace {

using testing::make_bucket;
using testing::random_gradient;

Slice slice(const std::string& name, const std::vector<std::int64_t>& shape) {
  Slice result{.name = name, .shape = shape, .numel = 1};
  for (const auto extent : shape) result.numel *= extent;
  return result;
}

TEST(Policy, EachReasonIsNamed) {
  const CompressionPolicy policy{.dense_below = 100, .dense_names = {"*.embedding.*", "head?.w"}};
  const struct {
    Slice slice;
    std::optional<std::string> reason;
  } table[] = {
      {slice("scale", {}), "a vector"},
      {slice("fc.bias", {1000}), "a vector"},
      {slice("fc.weight", {9, 11}), "below 100 values"},
      {slice("fc.weight", {10, 10}), std::nullopt},
      {slice("gpt.embedding.weight", {64, 64}), "name matches '*.embedding.*'"},
      {slice("embedding.weight", {64, 64}), std::nullopt},  // nothing is in front of its dot
      {slice("head1.w", {64, 64}), "name matches 'head?.w'"},
      {slice("head12.w", {64, 64}), std::nullopt},
      {slice("a.head1.w", {64, 64}), std::nullopt},  // the whole name counts
      {slice("empty", {0, 4}), "below 100 values"},
  };
  for (const auto& [one, reason] : table) {
    EXPECT_EQ(reason_for_dense(one, policy), reason) << one.name;
  }
  EXPECT_EQ(reason_for_dense(slice("m", {8, 8}), {.min_dimensions = 3}), "fewer than 3 dimensions");
  EXPECT_EQ(reason_for_dense(slice("v", {8}), {.min_dimensions = 1}), std::nullopt);
  EXPECT_EQ(reason_for_dense(slice("m", {1, 1}), {}), std::nullopt);
}

TEST(Policy, AnImpossibleOneIsRefused) {
  EXPECT_THROW(resolve({.policy = {.dense_below = -1}}), UsageError);
  EXPECT_THROW(resolve({.policy = {.min_dimensions = -1}}), UsageError);
  EXPECT_THROW(resolve({.policy = {.dense_names = {"a", ""}}}), UsageError);
  EXPECT_THROW(resolve({.start_iter = -1}), UsageError);
}

// What the policy keeps is the exact mean; what it does not keep is not.
TEST(Policy, ReducersFollowIt) {
  CompressionOptions options{Sign{64}};
  options.policy = {.dense_below = 100, .dense_names = {"p2"}};
  run_ranks(2, [&](auto communicator) {
    const auto run = [&](GradientReducer& reducer) {
      Bucket bucket = make_bucket({{9, 11}, {70, 40}, {33, 17}, {300}}, at::kDouble);
      reducer.prepare(bucket, communicator->rank(), 2);
      bucket.gradient.copy_(random_gradient(bucket, 0, communicator->rank()));
      reducer.stage(bucket, *communicator, {});
      reducer.settle(*communicator);
      reducer.commit(bucket);
      const at::Tensor mean = (random_gradient(bucket, 0, 0) + random_gradient(bucket, 0, 1)) / 2;
      const auto plans = reducer.plan(bucket);
      const std::vector<std::string> codings{
          "uncompressed: below 100 values", "sign, one scale per 64 values",
          "uncompressed: name matches 'p2'", "uncompressed: a vector"};
      for (std::size_t i = 0; i < plans.size(); ++i) {
        const Slice& one = bucket.slices[i];
        const auto same = [&](const at::Tensor& values) {
          return bucket.gradient.narrow(0, one.offset, one.numel)
              .equal(values.narrow(0, one.offset, one.numel));
        };
        EXPECT_EQ(plans[i].coding, codings[i]);
        EXPECT_EQ(plans[i].compressed, i == 1) << one.name;
        EXPECT_EQ(same(mean), i != 1) << one.name;
      }
    };
    run(*make_reducer(options));
    run(*reference::make_reducer(options));
  });
}

}  // namespace
}  // namespace thinwire
