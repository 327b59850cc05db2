#include "launch/cores.h"

#include <gtest/gtest.h>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"

namespace thinwire {
namespace {

double share(const std::vector<Processors>& ranks, std::size_t rank = 0) {
  return share_of(ranks, rank);
}

TEST(Cores, OfARankAloneAreAllThatItsProcessMayUse) {
  EXPECT_EQ(share({{"a", "1111", 0}}), 4);
  EXPECT_EQ(share({{"a", "0101", 0}}), 2);
}

TEST(Cores, AreDividedAmongRanksThatMayUseTheSame) {
  // Bound to nothing, as by mpirun --bind-to none: four ranks on eight processors.
  const Processors all{"a", "11111111", 0};
  EXPECT_EQ(share({all, all, all, all}, 2), 2);
  // Bound to two each: all of them.
  EXPECT_EQ(share({{"a", "1100", 0}, {"a", "0011", 0}}, 1), 2);
  // One has half of the other's.
  EXPECT_EQ(share({{"a", "1111", 0}, {"a", "0011", 0}}, 0), 3);
  EXPECT_EQ(share({{"a", "1111", 0}, {"a", "0011", 0}}, 1), 1);
}

TEST(Cores, OfOtherHostsDoNotCount) {
  const Processors here{"a", "11", 0};
  EXPECT_EQ(share({here, {"b", "11", 0}, {"b", "11", 0}}), 2);
}

TEST(Cores, AreNoMoreThanTheContainersQuota) {
  EXPECT_EQ(share({{"a", "11111111", 2}}), 2);
  const Processors limited{"a", "11111111", 3};
  EXPECT_EQ(share({limited, limited}), 1.5);
  EXPECT_EQ(share({{"a", "1111", 0.5}}), 1) << "there is always one";
}

TEST(Cores, AutoTakesWhatIsIdleAndNoMoreThanFour) {
  EXPECT_EQ(exchange_threads("auto", 8, 2, 8), 4);
  EXPECT_EQ(exchange_threads("auto", 4, 2, 8), 2);
  EXPECT_EQ(exchange_threads("auto", 2, 2, 8), 1);
  EXPECT_EQ(exchange_threads("auto", 1, 4, 8), 1);
  EXPECT_EQ(exchange_threads("auto", 3 * (1.0 / 3), 0, 8), 1);
}

TEST(Cores, RefusesMoreThreadsThanTheProcessMayUse) {
  EXPECT_EQ(exchange_threads("2", 1, 4, 2), 2);
  for (const char* words : {"3", "0", "-1", "two", "65", "", "1.5"}) {
    EXPECT_THROW(exchange_threads(words, 1, 1, 2), UsageError) << words;
  }
}

TEST(Cores, OfThisProcessAreThoseItIsBoundTo) {
  const Processors mine = processors_of_this_process();
  EXPECT_FALSE(mine.host.empty());
  EXPECT_NE(mine.allowed.find('1'), std::string::npos);
  EXPECT_GE(mine.quota, 0);
}

TEST(Cores, ATeamIsMadeOnEveryRank) {
  run_ranks(2, [](auto communicator) {
    EXPECT_EQ(make_team(*communicator, "1", 0), nullptr);
    EXPECT_EQ(make_team(*communicator, "auto", 1000), nullptr);
  });
}

}  // namespace
}  // namespace thinwire
