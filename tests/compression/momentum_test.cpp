// Averages before compression: the reducer gets the average, and all else is its own.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>

#include "collectives/checked.h"
#include "collectives/compression/options.h"
#include "collectives/compression/parse.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/averaging.h"
#include "tests/compression/support.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using testing::make_bucket;
using testing::random_gradient;
using testing::Snapshot;

constexpr double kMomentum = 0.7;

// Two matrices and between them a vector, which travels as it is.
Bucket bucket_of(at::ScalarType dtype) {
  return make_bucket({{33, 40}, {70}, {50, 7}}, dtype);
}
constexpr std::size_t kVector = 1;
constexpr std::size_t kFrozen = 2;

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

class Momentum : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(Momentum, TheInnerReducerGetsTheAverage) {
  for (const char* compressor : {"topk:density=0.1,block=64", "sign:block=64"}) {
    for (const char* feedback : {"econtrol:eta=0.05", "ef21", "econtrol"}) {
      for (const int size : {1, 3}) {
        SCOPED_TRACE(fmt::format("{}, {}, {} ranks", compressor, feedback, size));
        run_ranks(size, [&](auto ranks) {
          const int rank = ranks->rank();
          const auto communicator = make_checked(std::move(ranks));
          const CompressionOptions plain = parse_compression(compressor, feedback);
          CompressionOptions options = plain;
          options.feedback.momentum = kMomentum;
          const auto expected = make_reducer(plain);
          const auto got = testing::with_averages(
              options, [](const CompressionOptions& o) { return make_reducer(o); });
          Bucket by_hand = bucket_of(GetParam());
          Bucket bucket = bucket_of(GetParam());
          expected->prepare(by_hand, rank, size);
          got->prepare(bucket, rank, size);
          at::Tensor average = at::zeros_like(bucket.gradient);
          for (std::int64_t step = 0; step < 10; ++step) {
            StepContext context{.step = step, .seed = 1};
            const bool dense = step == 0 || step == 4;
            const bool poisoned = step == 6;
            const bool frozen = step == 7 || step == 8;
            if (dense) context.transmission = Transmission::dense;
            at::Tensor gradient = random_gradient(bucket, step, rank);
            if (poisoned && rank == size - 1) {
              gradient.select(0, 5).fill_(std::numeric_limits<double>::quiet_NaN());
            }
            at::Tensor next = average.clone();
            for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
              resting::set_frozen(bucket, i, frozen && i == kFrozen);
              resting::set_frozen(by_hand, i, frozen && i == kFrozen);
              const auto part = [&](const at::Tensor& of) {
                return of.narrow(0, bucket.slices[i].offset, bucket.slices[i].numel);
              };
              if (bucket.layout.rests(i)) part(gradient).zero_();
              if (i == kVector || bucket.layout.rests(i)) {
                part(by_hand.gradient).copy_(part(gradient));
                continue;
              }
              if (dense) {
                part(next).copy_(part(gradient));
              } else {
                // Rounded one by one.
                part(next)
                    .copy_(part(average).mul(kMomentum))
                    .add_(part(gradient).mul(1 - kMomentum));
              }
              part(by_hand.gradient).copy_(part(next));
            }
            bucket.gradient.copy_(gradient);
            expected->stage(by_hand, *communicator, context);
            expected->settle(*communicator);
            got->stage(bucket, *communicator, context);
            got->settle(*communicator);
            ASSERT_EQ(expected->non_finite(by_hand).has_value(), poisoned);
            ASSERT_EQ(got->non_finite(bucket), expected->non_finite(by_hand));
            if (poisoned) {
              expected->rollback(by_hand);
              got->rollback(bucket);
              continue;
            }
            expected->commit(by_hand);
            got->commit(bucket);
            average = next;
            for (const Slice& slice : bucket.slices) {
              ASSERT_TRUE(same_bits(bucket.gradient.narrow(0, slice.offset, slice.numel),
                                    by_hand.gradient.narrow(0, slice.offset, slice.numel)))
                  << "estimate of " << slice.name << ", step " << step;
            }
          }
          // The inner state, and then the averages of what is compressed.
          Snapshot inner, all;
          expected->visit(by_hand, inner);
          got->visit(bucket, all);
          const std::size_t own = all.entries.size() - 2;
          ASSERT_EQ(own, inner.entries.size());
          for (std::size_t i = 0; i < 2; ++i) {
            const Slice& slice = bucket.slices[i == 0 ? 0 : 2];
            EXPECT_EQ(all.entries[own + i].first.name, "averaged_gradient/" + slice.name);
            EXPECT_TRUE(same_bits(all.entries[own + i].second.flatten(),
                                  average.narrow(0, slice.offset, slice.numel)));
          }
          all.entries.resize(own);
          EXPECT_TRUE(all == inner);
        });
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Momentum, ::testing::Values(at::kFloat, at::kDouble));

}  // namespace
}  // namespace thinwire
