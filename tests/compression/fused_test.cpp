// The kernels' reducer against the plain composition: the same bits in estimates, residuals,
// verdicts and bytes sent, over steps of every kind.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "collectives/checked.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/compression/undecoded.h"
#include "collectives/metered.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/support.h"
#include "tests/reference/reducer.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using testing::make_bucket;
using testing::mixed_shapes;
using testing::random_gradient;
using testing::Snapshot;

struct Side {
  std::unique_ptr<GradientReducer> reducer;
  std::vector<Bucket> buckets;
};

// Three buckets: of everything, of one matrix, and of vectors alone.
std::vector<Bucket> make_buckets(at::ScalarType dtype) {
  return {make_bucket(mixed_shapes(), dtype, 0), make_bucket({{90, 31}}, dtype, 1),
          make_bucket({{17}, {3}}, dtype, 2)};
}

// What makes step `step` special.
void disturb(std::int64_t step, int rank, int size, Bucket& bucket, StepContext& context) {
  resting::set_frozen(bucket, 6, step >= 3 && step <= 5);
  resting::set_frozen(bucket, 1, step == 4 || step == 5);
  if (step == 5 || step == 9) context.transmission = Transmission::dense;
  const auto poison = [&](std::size_t slice, double value) {
    if (rank == size - 1)
      bucket.gradient.narrow(0, bucket.slices[slice].offset + 2, 1).fill_(value);
  };
  if (step == 6) poison(6, std::numeric_limits<double>::quiet_NaN());
  if (step == 7) poison(1, -std::numeric_limits<double>::infinity());
  if (step == 9) poison(5, std::numeric_limits<double>::infinity());
  if (step == 10) bucket.gradient.mul_(1e-44);
  for (const auto& slice : bucket.slices) {
    if (resting::is_frozen(bucket, slice))
      bucket.gradient.narrow(0, slice.offset, slice.numel).zero_();
  }
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

// Every combination that makes sense, with small blocks, and every format.
std::vector<CompressionOptions> ways() {
  const std::vector<CodecOptions> more = {
      Sign{1000},
      Sign{64, SignScale::rms},
      Quantize{.bits = 8, .block = 96, .grid = Grid::symmetric},
      Quantize{.bits = 4, .block = 64, .grid = Grid::max_min},
      Quantize{.bits = 3, .block = 256, .rounding = Rounding::stochastic},
      Quantize{.bits = 2, .block = 64, .grid = Grid::symmetric, .rounding = Rounding::stochastic},
      Cast{Half::fp16},
      TopK{.density = 0.05, .block = 512, .selection = Selection::exact},
  };
  std::vector<CompressionOptions> all;
  for (CompressionOptions way : valid_combinations()) {
    if (std::holds_alternative<PowerSgd>(way.codec)) continue;  // has one reducer
    if (std::holds_alternative<Sign>(way.codec)) way.codec = Sign{64};
    if (std::holds_alternative<Quantize>(way.codec)) way.codec = Quantize{.block = 64};
    if (std::holds_alternative<TopK>(way.codec)) way.codec = TopK{.density = 0.03, .block = 256};
    all.push_back(way);
  }
  for (const CodecOptions& codec : more) {
    all.push_back({codec});
    if (!std::holds_alternative<Cast>(codec)) all.push_back({codec, {FeedbackKind::econtrol}});
  }
  all.push_back({Sign{64}, {FeedbackKind::econtrol, 0.05}});
  return all;
}

// What a commit left, in memory: zero where no slice moves.
at::Tensor estimate(const Bucket& bucket) {
  if (!bucket.undecoded) return bucket.gradient;
  at::Tensor values = at::zeros_like(bucket.gradient);
  with_type(values.scalar_type(), [&]<typename T>(T) {
    for_each_tile<T>(bucket, {}, [&](const DecodedTile<T>& tile) {
      std::copy_n(tile.values, tile.count, values.data_ptr<T>() + tile.begin);
    });
  });
  return values;
}

class FusedReducers : public ::testing::TestWithParam<std::tuple<int, at::ScalarType>> {};

TEST_P(FusedReducers, DoWhatThePlainCompositionDoes) {
  const auto& [size, dtype] = GetParam();
  for (const auto& options : ways()) {
    const std::string where =
        fmt::format("codec {}, feedback {}, exchange {}", options.codec.index(),
                    static_cast<int>(options.feedback.kind), static_cast<int>(options.exchange));
    // The whole bucket at once, and in segments of about 500 values.
    for (const std::int64_t segment : {1 << 20, 500}) {
      run_ranks(size, [&](auto ranks) {
        const int rank = ranks->rank();
        const auto meter = std::make_shared<Meter>();
        const auto communicator = make_metered(make_checked(std::move(ranks)), meter);
        ReducerDevice launch;
        launch.segment = segment;
        // The third leaves its estimates coded, but for every fourth step.
        constexpr int kSides = 3;
        Side sides[kSides] = {{reference::make_reducer(options), make_buckets(dtype)},
                              {make_reducer(options, launch), make_buckets(dtype)},
                              {make_reducer(options, launch), make_buckets(dtype)}};
        const CompressionOptions resolved = resolve(options);
        const bool can_be_coded = resolved.exchange == ExchangeKind::two_stage &&
                                  resolved.feedback.kind != FeedbackKind::econtrol;
        for (Side& side : sides) {
          for (const Bucket& bucket : side.buckets) side.reducer->prepare(bucket, rank, size);
        }
        for (std::int64_t step = 0; step < 12; ++step) {
          std::optional<std::string> verdicts[kSides];
          std::int64_t bytes[kSides];
          const bool asks_for_coded = step % 4 != 3;
          for (int i = 0; i < kSides; ++i) {
            auto& [reducer, buckets] = sides[i];
            const auto before = meter->total().bytes_sent;
            for (Bucket& bucket : buckets) {
              // In each of them the mean of trackers is formed anew in a part of bucket 0.
              StepContext context{.step = 16 * step, .seed = 1};
              bucket.gradient.copy_(random_gradient(bucket, step, rank));
              if (bucket.index == 0) disturb(step, rank, size, bucket, context);
              if (step == 5 || step == 9) context.transmission = Transmission::dense;
              if (i == 2 && asks_for_coded) context.estimate = EstimateForm::undecoded;
              reducer->stage(bucket, *communicator, context);
            }
            reducer->settle(*communicator);
            bytes[i] = meter->total().bytes_sent - before;
            for (const Bucket& bucket : buckets) {
              if (!verdicts[i]) verdicts[i] = reducer->non_finite(bucket);
            }
            for (Bucket& bucket : buckets) {
              if (verdicts[i]) {
                reducer->rollback(bucket);
              } else {
                reducer->commit(bucket);
              }
            }
          }
          ASSERT_EQ(verdicts[0].has_value(), step == 6 || step == 7 || step == 9);
          for (int i = 1; i < kSides; ++i) {
            ASSERT_EQ(verdicts[0], verdicts[i]) << where << ", step " << step;
            EXPECT_EQ(bytes[0], bytes[i]) << where;
            for (std::size_t b = 0; b < sides[0].buckets.size(); ++b) {
              const Bucket& expected = sides[0].buckets[b];
              const Bucket& got = sides[i].buckets[b];
              if (!verdicts[0]) {
                EXPECT_EQ(got.undecoded != nullptr,
                          i == 2 && asks_for_coded && can_be_coded && step != 5)
                    << where << ", bucket " << b << ", step " << step;
                ASSERT_TRUE(same_bits(estimate(got), expected.gradient))
                    << where << ": estimates of bucket " << b << " differ in step " << step;
              }
              // To look at a state changes how it is kept, so the third is seen now and then only.
              if (i == 2 && step % 4 != 3) continue;
              Snapshot states[2];
              sides[0].reducer->visit(expected, states[0]);
              sides[i].reducer->visit(got, states[1]);
              ASSERT_TRUE(states[0] == states[1])
                  << where << ": states of bucket " << b << " differ after step " << step;
            }
          }
        }
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Floats, FusedReducers,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4, 7),
                                            ::testing::Values(at::kFloat)));
INSTANTIATE_TEST_SUITE_P(Doubles, FusedReducers,
                         ::testing::Combine(::testing::Values(1, 3),
                                            ::testing::Values(at::kDouble)));

}  // namespace
}  // namespace thinwire
