// What a loop of the user's own takes beside DataParallel: samples and random numbers.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"
#include "runtime/data/sharded_sampler.h"
#include "runtime/rank_generator.h"

namespace thinwire {
namespace {

using Indices = std::vector<std::size_t>;

// What `sampler` deals until the end of its epoch.
std::vector<Indices> rest_of_epoch(ShardedSampler& sampler, std::size_t batch) {
  std::vector<Indices> batches;
  while (auto next = sampler.next(batch)) batches.push_back(*next);
  return batches;
}

TEST(ShardedSampler, DealsEverySampleOnceInANewOrderEachEpoch) {
  constexpr int kRanks = 3;
  std::vector<std::vector<Indices>> first_epoch;
  for (const int epoch : {0, 1}) {
    std::multiset<std::size_t> seen;
    std::vector<Indices> of_rank_zero;
    for (int rank = 0; rank < kRanks; ++rank) {
      ShardedSampler sampler(50, 7, rank, kRanks);
      for (int before = 0; before < epoch; ++before) {
        sampler.reset();
        rest_of_epoch(sampler, 8);
      }
      EXPECT_FALSE(epoch > 0 && sampler.next(8).has_value()) << "an epoch ends until a reset";
      sampler.reset();
      const auto batches = rest_of_epoch(sampler, 8);
      for (const Indices& batch : batches) seen.insert(batch.begin(), batch.end());
      if (rank == 0) of_rank_zero = batches;
    }
    EXPECT_EQ(seen.size(), 50u);
    EXPECT_EQ(std::set<std::size_t>(seen.begin(), seen.end()).size(), 50u);
    first_epoch.push_back(of_rank_zero);
  }
  EXPECT_NE(first_epoch[0], first_epoch[1]);
}

TEST(ShardedSampler, GoesOnFromASavedPositionAlsoWithAnotherNumberOfRanks) {
  ShardedSampler uninterrupted(40, 3, 0, 1);
  uninterrupted.reset();
  Indices expected;
  for (const Indices& batch : rest_of_epoch(uninterrupted, 4)) {
    expected.insert(expected.end(), batch.begin(), batch.end());
  }
  // Two ranks take three steps of 2 x 4; then one rank goes on.
  ShardedSampler one_of_two(40, 3, 0, 2);
  one_of_two.reset();
  for (int step = 0; step < 3; ++step) one_of_two.next(4);
  torch::serialize::OutputArchive out;
  one_of_two.save(out);
  std::stringstream file;
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  ShardedSampler alone(40, 3, 0, 1);
  alone.load(in);
  EXPECT_EQ(alone.position(), one_of_two.position());
  alone.reset();  // what a loader does first
  Indices rest;
  for (const Indices& batch : rest_of_epoch(alone, 4)) {
    rest.insert(rest.end(), batch.begin(), batch.end());
  }
  EXPECT_EQ(rest, Indices(expected.begin() + 24, expected.end()));
}

TEST(ShardedSampler, ServesALoaderOfTorch) {
  struct Numbers : torch::data::datasets::Dataset<Numbers> {
    torch::data::Example<> get(std::size_t index) override {
      const auto value = torch::full({1}, static_cast<double>(index));
      return {value, value};
    }
    torch::optional<std::size_t> size() const override { return 10; }
  };
  ShardedSampler sampler(10, 1, 1, 2);
  auto loader =
      torch::data::make_data_loader(Numbers().map(torch::data::transforms::Stack<>()), sampler,
                                    torch::data::DataLoaderOptions().batch_size(2).workers(0));
  for (int epoch = 0; epoch < 2; ++epoch) {
    std::int64_t samples = 0;
    for (const auto& batch : *loader) samples += batch.data.size(0);
    EXPECT_EQ(samples, 5);
    EXPECT_EQ(sampler.position(), (DataPosition{epoch + 1, 0}));
  }
}

TEST(ShardedSampler, AnotherSizeIsRefused) {
  ShardedSampler sampler(10, 1, 0, 1);
  EXPECT_THROW(sampler.reset(11), UsageError);
}

TEST(RankGenerator, IsEachRanksOwnAndTheSameInEveryRun) {
  std::vector<std::vector<at::Tensor>> draws(2, std::vector<at::Tensor>(3));
  for (auto& of_run : draws) {
    run_ranks(3, [&](auto ranks) {
      at::Generator mine = rank_generator(5, ranks->rank());
      at::Tensor& drawn = of_run[static_cast<std::size_t>(ranks->rank())];
      for (int i = 0; i < 20; ++i) drawn = torch::randn({64}, mine);
    });
  }
  for (std::size_t rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(draws[0][rank].equal(draws[1][rank]));
    EXPECT_FALSE(draws[0][rank].equal(draws[0][(rank + 1) % 3]));
  }
  EXPECT_FALSE(
      torch::randn({8}, rank_generator(6, 0)).equal(torch::randn({8}, rank_generator(5, 0))));
}

}  // namespace
}  // namespace thinwire
