#include "runtime/data/partition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "collectives/base/error.h"
#include "runtime/data/image_dataset.h"

namespace thinwire {
namespace {

using Indices = std::vector<std::int64_t>;

// Images of one pixel with these labels.
ImageDataset labelled(const std::vector<std::uint8_t>& labels, std::int64_t classes) {
  return {{1, 1, 1}, std::vector<std::uint8_t>(labels.size()), labels, classes, {}};
}

// `each` samples of each class, in turn.
ImageDataset even(std::int64_t classes, std::int64_t each) {
  std::vector<std::uint8_t> labels;
  for (std::int64_t i = 0; i < classes * each; ++i) {
    labels.push_back(static_cast<std::uint8_t>(i % classes));
  }
  return labelled(labels, classes);
}

// 100 samples of class 0, 7 of class 1, 1 of class 2, 40 of class 3.
ImageDataset uneven() {
  std::vector<std::uint8_t> labels(148, 0);
  for (std::size_t i = 0; i < 40; ++i) labels[3 * i] = 3;
  for (std::size_t i = 0; i < 7; ++i) labels[3 * i + 1] = 1;
  labels[2] = 2;
  return labelled(labels, 4);
}

ByLabel of(std::int64_t classes) {
  return ByLabel{classes};
}

std::vector<LabelPartition> all_ranks(const Dataset& data, const ByLabel& options,
                                      std::int64_t world_size) {
  std::vector<LabelPartition> ranks;
  for (std::int64_t rank = 0; rank < world_size; ++rank) {
    ranks.emplace_back(data, options, world_size, rank);
  }
  return ranks;
}

// One rank's samples of one epoch, in order.
Indices epoch_of(LabelPartition& partition, EpochOrder& order, const BatchLayout& layout,
                 std::int64_t epoch) {
  Indices samples;
  for (DataPosition position{epoch, 0}; position.epoch == epoch;) {
    const RankBatch batch = partition.next_batch(order, position, layout);
    for (const Indices& micro : batch.micro_batches) {
      samples.insert(samples.end(), micro.begin(), micro.end());
    }
    position = batch.next;
  }
  return samples;
}

std::set<int> classes_in(const Dataset& data, const Indices& samples) {
  std::set<int> classes;
  for (const std::int64_t sample : samples) {
    classes.insert(data.labels()[static_cast<std::size_t>(sample)]);
  }
  return classes;
}

TEST(PartitionOptionsTest, Words) {
  EXPECT_TRUE(std::holds_alternative<Iid>(parse_partition("iid")));
  EXPECT_EQ(std::get<ByLabel>(parse_partition("by_label")).classes, std::nullopt);
  EXPECT_EQ(std::get<ByLabel>(parse_partition("by_label:classes=3")).classes, 3);
  for (const std::string bad : {"", "by-label", "iid:classes=2", "by_label:classes=0",
                                "by_label:classes=257", "by_label:class=2", "by_label:2"}) {
    EXPECT_THROW(parse_partition(bad), UsageError) << bad;
  }
}

TEST(LabelPartitionTest, EachRankHasItsClassesAndNoOther) {
  struct Case {
    std::int64_t ranks;
    ByLabel options;
    std::vector<std::set<int>> classes;
  };
  const std::vector<Case> cases = {
      {2, {}, {{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}}},
      {4, {}, {{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {9, 0, 1}}},
      {4, of(5), {{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}, {0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}}},
      {5, {}, {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}}},
      {1, {}, {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}},
      {2, of(10), {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}},
  };
  const ImageDataset data = even(10, 12);
  for (const Case& c : cases) {
    SCOPED_TRACE(c.ranks);
    EpochOrder order(data.size(), 3);
    auto ranks = all_ranks(data, c.options, c.ranks);
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      for (const std::int64_t epoch : {0, 1}) {
        const Indices samples = epoch_of(ranks[rank], order, {c.ranks, 4, 1}, epoch);
        EXPECT_EQ(classes_in(data, samples), c.classes[rank]);
      }
    }
  }
}

// Every sample has one owner, who has it in every epoch, in the epoch's order.
TEST(LabelPartitionTest, AnEpochIsEverySampleOnceOfTheSameOwnerInTheEpochsOrder) {
  const ImageDataset even_data = even(4, 30);
  const ImageDataset uneven_data = uneven();
  for (const Dataset* data :
       {static_cast<const Dataset*>(&even_data), static_cast<const Dataset*>(&uneven_data)}) {
    for (const std::int64_t world : {1, 2, 3, 4, 7}) {
      for (const BatchLayout& layout :
           {BatchLayout{world, 1, 1}, BatchLayout{world, 4, 3}, BatchLayout{world, 500, 2}}) {
        EpochOrder order(data->size(), 9);
        auto ranks = all_ranks(*data, {}, world);
        std::map<std::int64_t, std::size_t> owner;
        for (const std::int64_t epoch : {0, 1}) {
          Indices all;
          for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
            const Indices samples = epoch_of(ranks[rank], order, layout, epoch);
            const auto whole = order(epoch);
            auto place = whole.begin();
            for (const std::int64_t sample : samples) {
              place = std::find(place, whole.end(), sample);
              ASSERT_NE(place, whole.end()) << "out of order";
              EXPECT_EQ(owner.emplace(sample, rank).first->second, rank);
            }
            all.insert(all.end(), samples.begin(), samples.end());
          }
          std::sort(all.begin(), all.end());
          Indices counted(static_cast<std::size_t>(data->size()));
          std::iota(counted.begin(), counted.end(), std::int64_t{0});
          EXPECT_EQ(all, counted);
        }
      }
    }
  }
}

TEST(LabelPartitionTest, RanksAgreeOnTotalAndNextAndCountWhatTheyAllHave) {
  const ImageDataset data = uneven();
  for (const std::int64_t world : {1, 2, 3, 7}) {
    const BatchLayout layout{world, 2, 3};
    EpochOrder order(data.size(), 4);
    auto ranks = all_ranks(data, {}, world);
    for (DataPosition position; position.epoch < 2;) {
      std::vector<RankBatch> batches;
      std::int64_t total = 0;
      for (LabelPartition& rank : ranks) {
        batches.push_back(rank.next_batch(order, position, layout));
        ASSERT_EQ(std::ssize(batches.back().micro_batches), layout.accumulate);
        for (const Indices& micro : batches.back().micro_batches) total += std::ssize(micro);
      }
      // The same steps as without a partition.
      const DataPosition next = next_batch(order, position, layout, 0).next;
      EXPECT_GE(total, 1);
      for (const RankBatch& batch : batches) {
        EXPECT_EQ(batch.total, total);
        EXPECT_EQ(batch.next, next);
      }
      position = next;
    }
  }
}

TEST(LabelPartitionTest, EqualSharesGiveFullBatches) {
  const ImageDataset data = even(10, 40);
  EpochOrder order(data.size(), 1);
  for (LabelPartition& rank : all_ranks(data, of(5), 4)) {
    for (DataPosition position; position.epoch == 0;) {
      const RankBatch batch = rank.next_batch(order, position, {4, 8, 1});
      EXPECT_EQ(std::ssize(batch.micro_batches[0]), batch.total / 4);
      position = batch.next;
    }
  }
}

// A run that resumes asks for a step in mid-epoch first.
TEST(LabelPartitionTest, AStepDoesNotDependOnTheStepsBefore) {
  const ImageDataset data = uneven();
  const BatchLayout layout{3, 4, 2};
  EpochOrder order(data.size(), 6);
  LabelPartition through(data, {}, 3, 1);
  for (DataPosition position; position.epoch < 3;) {
    const RankBatch expected = through.next_batch(order, position, layout);
    EpochOrder fresh_order(data.size(), 6);
    LabelPartition fresh(data, {}, 3, 1);
    const RankBatch batch = fresh.next_batch(fresh_order, position, layout);
    EXPECT_EQ(batch.micro_batches, expected.micro_batches);
    EXPECT_EQ(batch.next, expected.next);
    position = expected.next;
  }
}

TEST(LabelPartitionTest, NamesWhatItDependsOn) {
  EXPECT_EQ(LabelPartition(even(10, 2), {}, 4, 0).name(), "by_label:classes=3 of 4 ranks");
}

struct Unlabelled final : Dataset {
  std::int64_t size() const override { return 3; }
  std::int64_t classes() const override { return 2; }
  std::vector<std::int64_t> sample_shape() const override { return {1}; }
  Batch batch(std::span<const std::int64_t>, at::ScalarType) const override { return {}; }
  std::uint64_t fingerprint() const override { return 0; }
};

std::string refusal(const Dataset& data, const ByLabel& options, std::int64_t world_size) {
  try {
    LabelPartition(data, options, world_size, 0);
  } catch (const UsageError& error) {
    return error.what();
  }
  return {};
}

TEST(LabelPartitionTest, RefusesWhatCannotBe) {
  EXPECT_THAT(refusal(Unlabelled{}, {}, 2), testing::HasSubstr("these data have none"));
  EXPECT_THAT(refusal(even(10, 2), of(2), 4), testing::HasSubstr("give classes=3 to 10"));
  EXPECT_THAT(refusal(even(10, 2), of(11), 4), testing::HasSubstr("give classes=3 to 10"));
  EXPECT_EQ(refusal(even(10, 2), of(3), 4), "");
}

TEST(LabelPartitionTest, RefusesAnOrderOfOtherData) {
  LabelPartition partition(even(10, 2), {}, 2, 0);
  EpochOrder other(21, 1);
  EpochOrder same(20, 1);
  EXPECT_THROW(partition.next_batch(other, {}, {2, 1, 1}), Bug);
  EXPECT_THROW(partition.next_batch(same, {}, {3, 1, 1}), Bug);
  EXPECT_THROW(partition.next_batch(same, {0, 20}, {2, 1, 1}), Bug);
}

}  // namespace
}  // namespace thinwire
