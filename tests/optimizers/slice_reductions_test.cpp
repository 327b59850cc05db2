#include "optimizers/slice_reductions.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/support.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

// What a reducer leaves of the same gradient on one rank, in the form asked for.
Bucket estimate(GradientReducer& reducer, Communicator& alone, EstimateForm form) {
  Bucket bucket = testing::make_bucket(testing::mixed_shapes());
  bucket.gradient.copy_(testing::random_gradient(bucket, 1, 0));
  resting::set_frozen(bucket, 5, true);
  reducer.prepare(bucket, 0, 1);
  reducer.stage(bucket, alone, {.step = 1, .estimate = form});
  reducer.settle(alone);
  EXPECT_FALSE(reducer.non_finite(bucket).has_value());
  reducer.commit(bucket);
  return bucket;
}

TEST(SliceReductions, AreThoseOfTensorOperationsInEitherForm) {
  const auto alone = std::move(make_thread_group(1).front());
  const CompressionOptions options{Sign{64}, {}, ExchangeKind::two_stage};
  const auto of_values = make_reducer(options);
  const auto of_coded = make_reducer(options);
  const Bucket values = estimate(*of_values, *alone, EstimateForm::values);
  const Bucket coded = estimate(*of_coded, *alone, EstimateForm::undecoded);
  ASSERT_EQ(values.undecoded, nullptr);
  ASSERT_NE(coded.undecoded, nullptr);
  for (const auto reduction :
       {SliceReduction::squared_norm, SliceReduction::largest, SliceReduction::mean}) {
    const auto got = reduce_estimate(values, reduction);
    EXPECT_EQ(got, reduce_estimate(coded, reduction));
    for (std::size_t i = 0; i < values.slices.size(); ++i) {
      const Slice& slice = values.slices[i];
      const at::Tensor flat = values.gradient.narrow(0, slice.offset, slice.numel).to(at::kDouble);
      double expected = 0;
      if (!values.rests(i) && slice.numel > 0) {
        expected = (reduction == SliceReduction::squared_norm ? flat.square().sum()
                    : reduction == SliceReduction::largest    ? flat.abs().max()
                                                              : flat.mean())
                       .item<double>();
      }
      EXPECT_NEAR(got[i], expected, 1e-9) << slice.name;
    }
  }
}

TEST(SliceReductions, ANonFiniteValueShowsAndAnAbsentSliceDoesNot) {
  Bucket bucket = testing::make_bucket({{4}, {4}});
  bucket.gradient.fill_(1);
  bucket.gradient[bucket.slices[1].offset + 1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(reduce_estimate(bucket, SliceReduction::largest)[1]));
  EXPECT_TRUE(std::isnan(reduce_estimate(bucket, SliceReduction::squared_norm)[1]));
  EXPECT_EQ(reduce_estimate(bucket, SliceReduction::mean)[0], 1);
  bucket.slices[1].absent = true;
  EXPECT_EQ(reduce_estimate(bucket, SliceReduction::largest)[1], 0);
}

}  // namespace
}  // namespace thinwire
