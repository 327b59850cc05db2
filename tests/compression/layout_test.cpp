// What a layout says and refuses, and that codecs see nothing but what is live.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "collectives/base/error.h"
#include "collectives/compression/options.h"
#include "collectives/compression/parse.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/layouts.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

using testing::Dice;
using testing::live_mask;
using testing::make_bucket;
using testing::random_gradient;
using testing::set_layout;

Bucket bucket_of_test() {
  return make_bucket({{9, 7}, {5}, {0, 4}, {40, 13}, {}, {24, 32}}, at::kDouble);
}

// The oracle of partly live slices: a bucket that has nothing but their live elements.
TEST(Layout, CodecsSeeTheLiveValuesWithoutGaps) {
  for (const char* compressor :
       {"sign:block=32", "quantize:bits=3,block=32", "topk:density=0.2,block=50", "bf16"}) {
    for (const char* feedback : {"error_feedback", "econtrol:eta=0.1", "none"}) {
      for (const int size : {1, 3}) {
        if (std::string(compressor) == "bf16" && (*feedback == 'e' && feedback[1] == 'c')) continue;
        SCOPED_TRACE(fmt::format("{} {} {}", compressor, feedback, size));
        // With owners parts would be cut elsewhere.
        const bool gathers = std::string(compressor) != "bf16";
        if (!gathers && size > 1) continue;
        const CompressionOptions options = parse_compression(
            compressor, feedback, gathers && size > 1 ? "all_gather" : "two_stage");
        run_ranks(size, [&](auto communicator) {
          const int rank = communicator->rank();
          Dice dice(3);
          Bucket bucket = bucket_of_test();
          std::vector<SliceLayout> parts(bucket.slices.size());
          std::vector<std::vector<std::int64_t>> shapes;
          for (std::size_t i = 0; i < parts.size(); ++i) {
            const Slice& slice = bucket.slices[i];
            if (!slice.is_vector() && slice.numel > 0) {
              std::vector<std::uint8_t> bytes(static_cast<std::size_t>((slice.numel + 7) / 8));
              for (auto& byte : bytes) byte = static_cast<std::uint8_t>(dice.below(256));
              parts[i].live = Liveness::of_bitmap(bytes);
              shapes.push_back({parts[i].live.count(slice.numel), 1});
            } else {
              shapes.push_back(slice.shape);
            }
          }
          Bucket compact = make_bucket(shapes, at::kDouble);
          const auto reducer = make_reducer(options);
          const auto expected = make_reducer(options);
          reducer->prepare(bucket, rank, size);
          expected->prepare(compact, rank, size);
          set_layout(*reducer, bucket, Layout(bucket.slices, parts, 1));
          // Elements of the bucket in the order of the compact one, which has gaps of its own.
          const auto each_live = [&](const auto& body) {
            for (std::size_t i = 0; i < parts.size(); ++i) {
              std::int64_t to = compact.slices[i].offset;
              for (const Range& live : live_ranges(bucket, i)) {
                for (std::int64_t at = live.begin; at < live.end; ++at) {
                  body(bucket.slices[i].offset + at, to++);
                }
              }
            }
          };
          for (int step = 0; step < 8; ++step) {
            const at::Tensor gradient = random_gradient(bucket, step, rank) * live_mask(bucket);
            bucket.gradient.copy_(gradient);
            compact.gradient.zero_();
            each_live([&](std::int64_t from, std::int64_t to) {
              compact.gradient.data_ptr<double>()[to] = gradient.data_ptr<double>()[from];
            });
            const StepContext context{
                .step = 16 * step + 1,
                .seed = 1,
                .transmission = step == 4 ? Transmission::dense : Transmission::compressed};
            for (auto [one, of] : {std::pair(reducer.get(), &bucket), {expected.get(), &compact}}) {
              one->stage(*of, *communicator, context);
              one->settle(*communicator);
              ASSERT_FALSE(one->non_finite(*of).has_value());
              one->commit(*of);
            }
            std::int64_t different = 0;
            each_live([&](std::int64_t from, std::int64_t to) {
              different += bucket.gradient.const_data_ptr<double>()[from] !=
                                   compact.gradient.const_data_ptr<double>()[to]
                               ? 1
                               : 0;
            });
            ASSERT_EQ(different, 0) << "step " << step;
          }
        });
      }
    }
  }
}

TEST(Layout, CountsWhatIsLive) {
  const Liveness ranges = Liveness::of_ranges({{1, 3}, {5, 6}});
  const Liveness bits = Liveness::of_bitmap({0b00100110});
  EXPECT_EQ(ranges.count(8), 3);
  EXPECT_EQ(bits.ranges(8), ranges.ranges(8));
  EXPECT_EQ(ranges.bitmap(8), bits.bitmap(8));
  EXPECT_EQ(Liveness().count(8), 8);
  EXPECT_EQ(Liveness::none().count(8), 0);
}

TEST(Layout, RefusesWhatCannotBe) {
  const Bucket bucket = bucket_of_test();
  const auto layout = [&](const Liveness& live) {
    std::vector<SliceLayout> parts(bucket.slices.size());
    parts[0].live = live;
    return Layout(bucket.slices, parts, 1);
  };
  EXPECT_THROW(layout(Liveness::of_ranges({{0, 64}})), UsageError);
  EXPECT_THROW(layout(Liveness::of_ranges({{3, 3}})), UsageError);
  EXPECT_THROW(layout(Liveness::of_ranges({{0, 3}, {3, 5}})), UsageError);
  EXPECT_THROW(layout(Liveness::of_ranges({{-1, 3}})), UsageError);
  EXPECT_THROW(layout(Liveness::of_bitmap({1, 2})), UsageError);
  EXPECT_NO_THROW(layout(Liveness::of_ranges({{0, 63}})));
}

TEST(Layout, HashesWhatRanksMustAgreeOn) {
  const Bucket bucket = bucket_of_test();
  std::vector<SliceLayout> parts(bucket.slices.size());
  EXPECT_EQ(Layout(bucket.slices, parts, 5).hash(), 0U);
  parts[3].coding.bits = 3;
  const Layout coded(bucket.slices, parts, 1);
  parts[3].live = Liveness::of_ranges({{0, 13}});
  const Layout some(bucket.slices, parts, 2);
  std::vector<std::uint8_t> bytes(65);
  bytes[0] = 0xff;
  bytes[1] = 0x1f;
  parts[3].live = Liveness::of_bitmap(bytes);
  EXPECT_NE(coded.hash(), 0U);
  EXPECT_NE(coded.hash(), some.hash());
  EXPECT_EQ(some.hash(), Layout(bucket.slices, parts, 3).hash()) << "the same elements";
  parts[3].inactive = Inactive::gone;
  EXPECT_NE(some.hash(), Layout(bucket.slices, parts, 3).hash()) << "ranks must drop the same";
  parts[3].inactive = Inactive::rests;
  parts[3].frozen = true;
  EXPECT_NE(some.hash(), Layout(bucket.slices, parts, 3).hash());
}

TEST(Layout, ReducersRefuseNumbersThatTheyDoNotHave) {
  const Bucket bucket = bucket_of_test();
  const auto refused = [&](const char* compressor, const SliceCoding& coding) {
    const auto reducer = make_reducer(parse_compression(compressor, "auto"));
    std::vector<SliceLayout> parts(bucket.slices.size());
    parts[3].coding = coding;
    try {
      reducer->require_possible(bucket, Layout(bucket.slices, parts, 1));
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find("p3"), std::string::npos) << error.what();
      return true;
    }
    return false;
  };
  EXPECT_TRUE(refused("sign", {.bits = 2}));
  EXPECT_TRUE(refused("sign", {.block = 12}));
  EXPECT_TRUE(refused("quantize", {.bits = 9}));
  EXPECT_TRUE(refused("quantize", {.density = 0.1}));
  EXPECT_TRUE(refused("quantize:rounding=stochastic", {.bits = 1}));
  EXPECT_TRUE(refused("topk", {.density = 0.0}));
  EXPECT_TRUE(refused("topk", {.rank = 2}));
  EXPECT_TRUE(refused("none", {.bits = 2}));
  EXPECT_TRUE(refused("powersgd", {.bits = 2}));
  EXPECT_TRUE(refused("powersgd", {.rank = -1}));
  EXPECT_FALSE(refused("powersgd", {.rank = 0}));
  EXPECT_FALSE(refused("quantize", {.bits = 2, .block = 64}));
}

}  // namespace
}  // namespace thinwire
