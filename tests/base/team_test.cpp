#include "collectives/base/team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace thinwire {
namespace {

using std::chrono::milliseconds;

TEST(Team, DoesEveryPartOnceInEveryRound) {
  for (const int size : {1, 2, 3, 5}) {
    Team team(size);
    EXPECT_EQ(team.size(), size);
    for (int round = 0; round < 3000; ++round) {
      const int parts = round % 17;
      std::vector<int> done(17);
      team.share(parts, [&](std::int64_t part) { ++done[static_cast<std::size_t>(part)]; });
      for (int part = 0; part < 17; ++part) {
        ASSERT_EQ(done[static_cast<std::size_t>(part)], part < parts ? 1 : 0) << round;
      }
    }
  }
}

TEST(Team, WorksOnSeveralThreadsAlsoAfterItHasSlept) {
  Team team(3);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(milliseconds(50));
    std::mutex mutex;
    std::set<std::thread::id> threads;
    // A part waits until all three are at work, which they must be some time.
    std::atomic<int> here = 0;
    team.share(3, [&](std::int64_t) {
      ++here;
      while (here < 3) std::this_thread::yield();
      const std::lock_guard lock(mutex);
      threads.insert(std::this_thread::get_id());
    });
    EXPECT_EQ(threads.size(), 3U);
  }
}

TEST(Team, ThrowsOnWhatAPartThrowsAndWorksAgain) {
  Team team(3);
  for (int thrower = 0; thrower < 8; ++thrower) {
    EXPECT_THROW(team.share(8,
                            [&](std::int64_t part) {
                              if (part == thrower) throw std::runtime_error("part");
                            }),
                 std::runtime_error);
    std::atomic<int> done = 0;
    team.share(8, [&](std::int64_t) { ++done; });
    EXPECT_EQ(done, 8);
  }
}

// A kernel that is shared out inside of a part, as an update of tiles is.
TEST(Team, RunsNestedWorkWhereItIsCalled) {
  Team team(3);
  std::vector<std::atomic<int>> done(64);
  team.share(8, [&](std::int64_t outer) {
    const std::thread::id here = std::this_thread::get_id();
    team.share(8, [&](std::int64_t inner) {
      EXPECT_EQ(std::this_thread::get_id(), here);
      ++done[static_cast<std::size_t>(8 * outer + inner)];
    });
  });
  for (const auto& times : done) EXPECT_EQ(times, 1);
}

// The communication thread and the thread of the update have the same team.
TEST(Team, ServesTwoThreadsAtOnce) {
  Team team(3);
  std::vector<std::thread> callers;
  std::atomic<int> wrong = 0;
  for (int caller = 0; caller < 2; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 2000; ++round) {
        std::atomic<int> sum = 0;
        team.share(10, [&](std::int64_t part) { sum += static_cast<int>(part); });
        if (sum != 45) ++wrong;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ShareOut, CoversAllInOrderedRangesOfTheLeastSize) {
  Team three(3);
  for (Team* team : {static_cast<Team*>(nullptr), &three}) {
    for (const std::int64_t count : {0, 1, 15, 16, 31, 32, 33, 1000}) {
      std::mutex mutex;
      std::set<std::pair<std::int64_t, std::int64_t>> ranges;
      share_out(team, count, 16, [&](std::int64_t begin, std::int64_t end) {
        const std::lock_guard lock(mutex);
        ranges.insert({begin, end});
      });
      std::int64_t end = 0;
      for (const auto& range : ranges) {
        EXPECT_EQ(range.first, end);
        EXPECT_TRUE(range.second - range.first >= 16 || ranges.size() == 1);
        end = range.second;
      }
      EXPECT_EQ(end, count);
      EXPECT_EQ(ranges.size() > 1, team != nullptr && count >= 32) << count;
    }
  }
}

}  // namespace
}  // namespace thinwire
