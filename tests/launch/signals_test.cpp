#include "launch/signals.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace thinwire {
namespace {

using Clock = std::chrono::steady_clock;

bool requested_soon(const SignalWatcher& watcher) {
  const auto end = Clock::now() + std::chrono::seconds(10);
  while (!watcher.requested() && Clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return watcher.requested();
}

bool blocked(int number) {
  sigset_t now;
  pthread_sigmask(SIG_BLOCK, nullptr, &now);
  return sigismember(&now, number) == 1;
}

TEST(Signals, EachOneIsARequest) {
  for (const int number : {SIGUSR1, SIGTERM, SIGINT}) {
    SignalWatcher watcher;
    EXPECT_FALSE(watcher.requested());
    kill(getpid(), number);
    EXPECT_TRUE(requested_soon(watcher)) << number;
  }
}

TEST(Signals, TheFirstOneIsAnnouncedOnce) {
  testing::internal::CaptureStderr();
  {
    SignalWatcher watcher;
    kill(getpid(), SIGUSR1);
    ASSERT_TRUE(requested_soon(watcher));
    kill(getpid(), SIGUSR1);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "thinwire: SIGUSR1: checkpoint and stop at the next step\n");
}

TEST(Signals, ThreadsThatStartLaterAreSpared) {
  SignalWatcher watcher;
  std::thread worker([&] {
    EXPECT_TRUE(blocked(SIGUSR1));
    EXPECT_TRUE(requested_soon(watcher));
  });
  kill(getpid(), SIGUSR1);
  worker.join();
}

TEST(Signals, TheMaskIsRestoredPromptly) {
  ASSERT_FALSE(blocked(SIGTERM));
  const auto start = Clock::now();
  {
    const SignalWatcher watcher;
    for (const int number : {SIGUSR1, SIGTERM, SIGINT}) EXPECT_TRUE(blocked(number));
  }
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  for (const int number : {SIGUSR1, SIGTERM, SIGINT}) EXPECT_FALSE(blocked(number));
}

TEST(Signals, ManyWatchersInTurnLeaveNoSignalBehind) {
  // A signal that was left pending would kill this process when its mask is restored.
  for (int i = 0; i < 200; ++i) {
    const SignalWatcher watcher;
    kill(getpid(), SIGUSR1);
  }
}

void stop_twice(int first, int second) {
  const SignalWatcher watcher;
  kill(getpid(), first);
  if (!requested_soon(watcher)) return;
  kill(getpid(), second);
  std::this_thread::sleep_for(std::chrono::seconds(10));
}

TEST(SignalsDeathTest, ASecondInterruptWhileStoppingEndsAtOnce) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(stop_twice(SIGTERM, SIGINT), testing::ExitedWithCode(130),
              "SIGINT while stopping: exit at once");
  EXPECT_EXIT(stop_twice(SIGUSR1, SIGTERM), testing::ExitedWithCode(143),
              "SIGTERM while stopping: exit at once");
}

}  // namespace
}  // namespace thinwire
