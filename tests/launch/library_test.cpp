// `launch` with ranks as threads. Under launchers: tests/install.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "collectives/base/error.h"
#include "launch/launch.h"

namespace thinwire {
namespace {

using Ranks = std::unique_ptr<Communicator>;

// Exit code and what was printed to stderr.
template <typename Body>
std::string launched(std::vector<std::string> arguments, Body body, LaunchOptions options = {}) {
  arguments.insert(arguments.begin(), "program");
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  testing::internal::CaptureStderr();
  const int code = launch(static_cast<int>(argv.size()), argv.data(), body, options);
  return fmt::format("{} {}", code, testing::internal::GetCapturedStderr());
}

int ranks_of(const std::vector<std::string>& arguments, const LaunchOptions& options) {
  std::atomic<int> size{0};
  launched(
      arguments, [&](Ranks ranks) { size = ranks->size(); }, options);
  return size;
}

const std::string kLine =
    "thinwire: launcher alone (no launcher's variables are set); ranks over threads\n";

TEST(Launch, RunsEveryRank) {
  std::atomic<int> sum{0};
  EXPECT_EQ(launched({"--ranks", "3"}, [&](Ranks ranks) { sum += 1 + ranks->rank(); }),
            "0 " + kLine);
  EXPECT_EQ(sum, 6);
}

TEST(Launch, ItsArgumentsWinOverTheOptions) {
  LaunchOptions four;
  four.ranks = 4;
  EXPECT_EQ(ranks_of({}, {}), 1);
  EXPECT_EQ(ranks_of({"--lr", "3"}, four), 4);
  EXPECT_EQ(ranks_of({"--ranks", "2", "data"}, four), 2);
  EXPECT_EQ(ranks_of({"data", "--ranks=3"}, four), 3);
  EXPECT_EQ(ranks_of({"--", "--ranks=3"}, four), 4);
  std::atomic<int> size{0};
  EXPECT_EQ(launch(four, [&](Ranks ranks) { size = ranks->size(); }), 0);
  EXPECT_EQ(size, 4);
}

TEST(Launch, ArgumentsThatCannotBeUsed) {
  const auto nothing = [](Ranks) {};
  EXPECT_EQ(launched({"--ranks", "0"}, nothing),
            "2 thinwire: --ranks is '0'; give a whole number from 1 to 256\n");
  EXPECT_EQ(launched({"--ranks"}, nothing),
            "2 thinwire: --ranks is ''; give a whole number from 1 to 256\n");
  EXPECT_EQ(launched({"--backend", "gloo"}, nothing),
            "2 thinwire: --backend is 'gloo'; give auto, threads, mpi or sockets\n");
}

TEST(Launch, WhatLeavesARankEndsTheProgramWithItsCode) {
  const std::vector<std::string> two{"--ranks", "2"};
  EXPECT_EQ(launched(two, [](Ranks ranks) { return ranks->rank() == 1 ? 75 : 0; }), "75 " + kLine);
  const auto waiting = [](Ranks ranks) {
    if (ranks->rank() == 1) throw DataError("a; b");
    ranks->barrier()->wait();
  };
  EXPECT_EQ(launched(two, waiting), "65 " + kLine + "thinwire: a; b\n");
  EXPECT_EQ(launched(two, [](Ranks) { throw std::runtime_error("x"); }),
            "70 " + kLine + "thinwire: x\n");
  EXPECT_EQ(launched(two, [](Ranks) { throw 1; }),
            "70 " + kLine +
                "thinwire: the program threw what is no std::exception; derive it from that to see "
                "it here\n");
}

}  // namespace
}  // namespace thinwire
