#include "launch/signals.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
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

TEST(Signals, AfterGivingUpATerminationAsksForNothing) {
  testing::internal::CaptureStderr();
  {
    SignalWatcher watcher;
    watcher.give_up();
    kill(getpid(), SIGTERM);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_FALSE(watcher.requested());
    kill(getpid(), SIGUSR1);  // the second one is like a first
    EXPECT_TRUE(requested_soon(watcher));
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "thinwire: SIGUSR1: checkpoint and stop at the next step\n");
}

TEST(Signals, AFileThatGrowsTooLargeIsAnErrorOfItsWrite) {
  const SignalWatcher watcher;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  std::FILE* file = std::tmpfile();
  rlimit small = before;
  small.rlim_cur = 10;
  setrlimit(RLIMIT_FSIZE, &small);
  const ssize_t first = write(fileno(file), "0123456789", 10);
  const ssize_t second = write(fileno(file), "x", 1);
  const int error = errno;
  setrlimit(RLIMIT_FSIZE, &before);
  std::fclose(file);
  EXPECT_EQ(first, 10);
  EXPECT_EQ(second, -1);
  EXPECT_EQ(error, EFBIG);
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
