#include "runtime/data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using Indices = std::vector<std::int64_t>;

Indices permutation(std::int64_t size, std::uint64_t seed, std::int64_t epoch) {
  EpochOrder order(size, seed);
  const auto view = order(epoch);
  return {view.begin(), view.end()};
}

Indices sorted(Indices indices) {
  std::sort(indices.begin(), indices.end());
  return indices;
}

Indices counted(std::int64_t size) {
  Indices indices(static_cast<std::size_t>(size));
  std::iota(indices.begin(), indices.end(), std::int64_t{0});
  return indices;
}

// All ranks' samples of one step, and where the next one starts.
struct Step {
  Indices samples;
  DataPosition next;
};

Step gather(EpochOrder& order, const DataPosition& position, const BatchLayout& layout) {
  Step step;
  for (std::int64_t rank = 0; rank < layout.world_size; ++rank) {
    const RankBatch batch = next_batch(order, position, layout, rank);
    for (const auto& micro : batch.micro_batches) {
      step.samples.insert(step.samples.end(), micro.begin(), micro.end());
    }
    if (rank > 0) {
      EXPECT_EQ(batch.next, step.next);
    }
    step.next = batch.next;
  }
  return step;
}

TEST(EpochOrderTest, IsAPermutation) {
  for (const std::int64_t size : {1, 2, 3, 1000, 60000}) {
    EXPECT_EQ(sorted(permutation(size, 5, 2)), counted(size)) << size;
  }
}

TEST(EpochOrderTest, DependsOnSeedAndEpoch) {
  const Indices order = permutation(1000, 1, 0);
  EXPECT_EQ(permutation(1000, 1, 0), order);
  EXPECT_NE(permutation(1000, 1, 1), order);
  EXPECT_NE(permutation(1000, 2, 0), order);
  EXPECT_NE(order, counted(1000));
}

TEST(EpochOrderTest, DoesNotDependOnTheEpochsAskedForBefore) {
  EpochOrder order(1000, 1);
  order(7);
  order(3);
  const auto view = order(0);
  EXPECT_EQ(Indices(view.begin(), view.end()), permutation(1000, 1, 0));
}

// From an implementation of Philox and Fisher-Yates in Python. A change would break every resumed
// run.
TEST(EpochOrderTest, IsTheRecordedOne) {
  Indices order = permutation(60000, 1, 0);
  order.resize(8);
  EXPECT_THAT(order, testing::ElementsAre(34222, 18820, 45699, 23426, 29109, 50433, 24254, 43173));
}

// Each of the 24 permutations of four samples is as frequent as the others, within six sigma.
TEST(EpochOrderTest, IsUniform) {
  constexpr int kEpochs = 24 * 1000;
  std::map<Indices, int> counts;
  EpochOrder order(4, 1);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const auto view = order(epoch);
    ++counts[Indices(view.begin(), view.end())];
  }
  EXPECT_EQ(counts.size(), 24u);
  for (const auto& [_, count] : counts) EXPECT_NEAR(count, 1000, 6 * 31);
}

TEST(ShareOfRankTest, CoversEverythingOnceAndEvenly) {
  for (const std::int64_t size : {0, 1, 3, 10, 10000}) {
    for (const std::int64_t world : {1, 2, 3, 4, 7}) {
      std::int64_t expected_begin = 0;
      for (std::int64_t rank = 0; rank < world; ++rank) {
        const IndexRange share = share_of_rank(size, world, rank);
        EXPECT_EQ(share.begin, expected_begin);
        EXPECT_GE(share.size(), size / world);
        EXPECT_LE(share.size(), (size + world - 1) / world);
        expected_begin = share.end;
      }
      EXPECT_EQ(expected_begin, size);
    }
  }
}

TEST(ShareOfRankTest, RefusesARankOutsideItsWorld) {
  EXPECT_THROW(share_of_rank(10, 2, 2), Bug);
  EXPECT_THROW(share_of_rank(10, 2, -1), Bug);
}

// Calls `test(dataset_size, layout)` for a grid that has sizes below the world's.
template <typename Test>
void for_each_case(const Test& test) {
  for (const std::int64_t size : {1, 2, 24, 101}) {
    for (const std::int64_t world : {1, 2, 3, 4, 7}) {
      for (const std::int64_t batch_size : {1, 4, 9}) {
        for (const std::int64_t accumulate : {1, 2, 5}) {
          SCOPED_TRACE(testing::Message() << size << " samples, " << world << " ranks x "
                                          << batch_size << " x " << accumulate);
          test(size, BatchLayout{world, batch_size, accumulate});
        }
      }
    }
  }
}

TEST(NextBatchTest, GivesEverySampleOncePerEpoch) {
  for_each_case([](std::int64_t size, const BatchLayout& layout) {
    EpochOrder order(size, 1);
    DataPosition position;
    for (std::int64_t epoch = 0; epoch < 2; ++epoch) {
      Indices seen;
      std::int64_t steps = 0;
      while (position.epoch == epoch) {
        const Step step = gather(order, position, layout);
        seen.insert(seen.end(), step.samples.begin(), step.samples.end());
        EXPECT_EQ(position.consumed + std::ssize(step.samples),
                  step.next.epoch == epoch ? step.next.consumed : size);
        position = step.next;
        ++steps;
      }
      EXPECT_EQ(position, (DataPosition{epoch + 1, 0}));
      EXPECT_EQ(sorted(seen), counted(size));
      EXPECT_EQ(steps, steps_per_epoch(size, layout));
    }
  });
}

void expect_dealt_as_documented(std::int64_t size, const BatchLayout& layout) {
  const Indices expected = permutation(size, 1, 0);
  EpochOrder order(size, 1);
  DataPosition position;
  while (position.epoch == 0) {
    std::vector<RankBatch> ranks;
    for (std::int64_t rank = 0; rank < layout.world_size; ++rank) {
      ranks.push_back(next_batch(order, position, layout, rank));
      ASSERT_EQ(std::ssize(ranks.back().micro_batches), layout.accumulate);
    }
    Indices dealt;
    for (std::size_t micro = 0; micro < ranks[0].micro_batches.size(); ++micro) {
      const std::int64_t before = std::ssize(dealt);
      std::int64_t smallest = size;
      std::int64_t largest = 0;
      for (const RankBatch& rank : ranks) {
        const Indices& indices = rank.micro_batches[micro];
        dealt.insert(dealt.end(), indices.begin(), indices.end());
        smallest = std::min(smallest, std::ssize(indices));
        largest = std::max(largest, std::ssize(indices));
      }
      EXPECT_LE(largest - smallest, 1);
      // Only the end of an epoch shortens a micro-batch.
      const std::int64_t full = layout.world_size * layout.batch_size;
      EXPECT_EQ(std::ssize(dealt) - before, std::min(full, size - position.consumed - before));
    }
    EXPECT_TRUE(std::equal(dealt.begin(), dealt.end(), expected.begin() + position.consumed));
    for (const RankBatch& rank : ranks) EXPECT_EQ(rank.total, std::ssize(dealt));
    position = ranks[0].next;
  }
}

TEST(NextBatchTest, DealsTheOrderAsDocumented) {
  for_each_case(expect_dealt_as_documented);
}

TEST(SamplerTest, StepsPerEpochByHand) {
  EXPECT_EQ(steps_per_epoch(100, {2, 5, 1}), 10);
  EXPECT_EQ(steps_per_epoch(101, {2, 5, 1}), 11);
  EXPECT_EQ(steps_per_epoch(101, {2, 5, 2}), 6);
  EXPECT_EQ(steps_per_epoch(1, {7, 64, 8}), 1);
}

TEST(SamplerTest, FourRanksSeeTheSamplesOfOneRankWithFourTimesTheBatch) {
  EpochOrder order(1003, 9);
  DataPosition four;
  DataPosition one;
  DataPosition accumulating;
  while (four.epoch < 2) {
    const Step of_four = gather(order, four, {.world_size = 4, .batch_size = 8});
    const Step of_one = gather(order, one, {.world_size = 1, .batch_size = 32});
    const Step of_accumulation =
        gather(order, accumulating, {.world_size = 1, .batch_size = 8, .accumulate = 4});
    EXPECT_EQ(of_four.samples, of_one.samples);
    EXPECT_EQ(of_accumulation.samples, of_one.samples);
    four = of_four.next;
    one = of_one.next;
    accumulating = of_accumulation.next;
    EXPECT_EQ(four, one);
    EXPECT_EQ(four, accumulating);
  }
}

TEST(SamplerTest, AChangeOfWorldSizeInMidEpochLosesAndRepeatsNothing) {
  EpochOrder order(1003, 9);
  DataPosition position;
  Indices seen;
  for (std::int64_t step_index = 0; position.epoch == 0; ++step_index) {
    const BatchLayout layout{
        .world_size =
            std::vector<std::int64_t>{
                4, 3, 7, 1}[static_cast<std::size_t>(std::min<std::int64_t>(step_index / 5, 3))],
        .batch_size = 8};
    const Step step = gather(order, position, layout);
    seen.insert(seen.end(), step.samples.begin(), step.samples.end());
    position = step.next;
  }
  // Not only the same set but the same order, for contiguous shares of one micro-batch are in
  // order.
  EXPECT_EQ(seen, permutation(1003, 9, 0));
}

TEST(SamplerTest, RefusesAPositionOutsideTheEpoch) {
  EpochOrder order(10, 1);
  EXPECT_THROW(next_batch(order, {0, 10}, {}, 0), Bug);
  EXPECT_THROW(next_batch(order, {0, -1}, {}, 0), Bug);
  EXPECT_THROW(next_batch(order, {-1, 0}, {}, 0), Bug);
  EXPECT_THROW(EpochOrder(0, 1), Bug);
}

}  // namespace
}  // namespace thinwire
