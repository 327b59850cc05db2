#include "collectives/agreement.h"

#include <gtest/gtest.h>

#include <thread>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"

namespace thinwire {
namespace {

TEST(Agreement, EqualFactsDifferInNothing) {
  EXPECT_EQ(differences({{{"lr", "0.1"}, {"layout", "a\nb\n"}}}), "");
  EXPECT_EQ(differences({{{"lr", "0.1"}}, {{"lr", "0.1"}}, {{"lr", "0.1"}}}), "");
  EXPECT_EQ(differences({{}, {}}), "");
}

TEST(Agreement, EachKeyThatDiffersWithItsValuesAndTheirRanks) {
  const Facts a{{"lr", "0.1"}, {"seed", "1"}, {"model", "mlp"}};
  const Facts b{{"lr", "0.2"}, {"seed", "1"}, {"model", "mlp"}};
  EXPECT_EQ(differences({a, b, a, a}), "lr: 0.1 (ranks 0, 2-3), 0.2 (rank 1)");
  const Facts c{{"lr", "0.1"}, {"seed", "1"}, {"model", "convnet"}};
  EXPECT_EQ(differences({b, c, c, a}),
            "lr: 0.2 (rank 0), 0.1 (ranks 1-3)\n"
            "model: mlp (ranks 0, 3), convnet (ranks 1-2)");
}

TEST(Agreement, OnlyTheLastRankDiffers) {
  EXPECT_EQ(differences({{{"k", "x"}}, {{"k", "x"}}, {{"k", "y"}}}),
            "k: x (ranks 0-1), y (rank 2)");
}

TEST(Agreement, AMissingKeyIsNotAnEmptyOne) {
  EXPECT_EQ(differences({{{"resume", ""}}, {}, {{"resume", "auto"}}}),
            "resume: (empty) (rank 0), (not given) (rank 1), auto (rank 2)");
}

TEST(Agreement, LongValuesAreShortenedToTheFirstLineThatDiffers) {
  const Facts a{{"layout", "conv1 3x3\nconv2 5x5\nfc 10\n"}};
  const Facts b{{"layout", "conv1 3x3\nconv2 7x7\nfc 20\n"}};
  const Facts c{{"layout", "conv1 3x3"}};
  EXPECT_EQ(differences({a, b, a}), "layout, line 2: conv2 5x5 (ranks 0, 2), conv2 7x7 (rank 1)");
  EXPECT_EQ(differences({a, c}), "layout, line 2: conv2 5x5 (rank 0), (ends before) (rank 1)");
  EXPECT_EQ(differences({c, a}), "layout, line 2: (ends before) (rank 0), conv2 5x5 (rank 1)");
}

TEST(Agreement, ALineEndAtTheEndCounts) {
  EXPECT_EQ(differences({{{"k", "a"}}, {{"k", "a\n"}}}),
            "k, line 2: (ends before) (rank 0), (empty) (rank 1)");
}

TEST(Agreement, EveryRankThrowsTheSameDifference) {
  std::vector<std::string> errors(3);
  auto group = make_thread_group(3);
  std::vector<std::thread> threads;
  for (auto& ranks : group) {
    threads.emplace_back([&] {
      try {
        require_same_everywhere(*ranks, {{"lr", ranks->rank() == 1 ? "0.2" : "0.1"}, {"seed", "1"}},
                                kStartedDifferently);
      } catch (const ConfigurationMismatch& error) {
        errors[static_cast<std::size_t>(ranks->rank())] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_NE(errors[0].find("lr: 0.1 (ranks 0, 2), 0.2 (rank 1)"), std::string::npos) << errors[0];
  EXPECT_EQ(errors[1], errors[0]);
  EXPECT_EQ(errors[2], errors[0]);
}

}  // namespace
}  // namespace thinwire
