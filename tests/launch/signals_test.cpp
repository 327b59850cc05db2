#include "launch/signals.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::array kAsk{SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP, SIGXCPU};
using Milliseconds = std::chrono::milliseconds;

// What the parent of this process ignores is its custom to ignore, not what is tested here.
class Signals : public testing::Test {
 protected:
  void SetUp() override {
    for (const int number : kAsk) std::signal(number, SIG_DFL);
  }
};
using SignalsDeathTest = Signals;

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

TEST_F(Signals, EachOneIsARequest) {
  for (const int number : kAsk) {
    SignalWatcher watcher;
    EXPECT_FALSE(watcher.requested());
    kill(getpid(), number);
    EXPECT_TRUE(requested_soon(watcher)) << number;
  }
}

TEST_F(Signals, TheFirstOneIsAnnouncedOnce) {
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

TEST_F(Signals, ThreadsThatStartLaterAreSpared) {
  SignalWatcher watcher;
  std::thread worker([&] {
    EXPECT_TRUE(blocked(SIGUSR1));
    EXPECT_TRUE(requested_soon(watcher));
  });
  kill(getpid(), SIGUSR1);
  worker.join();
}

TEST_F(Signals, TheMaskIsRestoredPromptly) {
  ASSERT_FALSE(blocked(SIGTERM));
  const auto start = Clock::now();
  {
    const SignalWatcher watcher;
    for (const int number : kAsk) EXPECT_TRUE(blocked(number));
  }
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  for (const int number : kAsk) EXPECT_FALSE(blocked(number));
}

TEST_F(Signals, ManyWatchersInTurnLeaveNoSignalBehind) {
  // A signal that was left pending would kill this process when its mask is restored.
  for (int i = 0; i < 200; ++i) {
    const SignalWatcher watcher;
    for (const int number : kAsk) kill(getpid(), number);
  }
}

TEST_F(Signals, WhatTheParentIgnoresStaysIgnored) {
  for (const int ignored : {SIGHUP, SIGUSR1}) {
    std::signal(ignored, SIG_IGN);
    {
      const SignalWatcher watcher;
      kill(getpid(), ignored);
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      EXPECT_FALSE(watcher.requested()) << ignored;
      kill(getpid(), SIGUSR2);
      EXPECT_TRUE(requested_soon(watcher));
    }
    std::signal(ignored, SIG_DFL);
  }
}

TEST_F(Signals, AfterGivingUpATerminationAsksForNothing) {
  testing::internal::CaptureStderr();
  {
    SignalWatcher watcher;
    watcher.give_up();
    kill(getpid(), SIGTERM);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_FALSE(watcher.requested());
    kill(getpid(), SIGUSR1);  // the second one counts, but nothing will be saved
    EXPECT_TRUE(requested_soon(watcher));
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(Signals, APipeWithoutAReaderIsAnErrorOfItsWrite) {
  std::signal(SIGPIPE, SIG_DFL);
  {
    const WritesFailAlive writes;
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    close(ends[0]);
    EXPECT_EQ(write(ends[1], "x", 1), -1);
    EXPECT_EQ(errno, EPIPE);
    close(ends[1]);
  }
  EXPECT_EQ(std::signal(SIGPIPE, SIG_DFL), SIG_DFL);
}

TEST_F(Signals, AFileThatGrowsTooLargeIsAnErrorOfItsWrite) {
  const WritesFailAlive writes;
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

// Two signals, the second one `later` than the first; ends with 75 unless the watcher ends it.
void stop_and(int first, Milliseconds later, int second, Milliseconds one_request) {
  const SignalWatcher watcher(one_request);
  kill(getpid(), first);
  if (!requested_soon(watcher)) return;
  std::this_thread::sleep_for(later);
  kill(getpid(), second);
  const bool must_end = later > one_request && (second == SIGTERM || second == SIGINT);
  std::this_thread::sleep_for(must_end ? std::chrono::seconds(30) : Milliseconds(100));
  std::_Exit(75);
}

TEST_F(SignalsDeathTest, ASecondInterruptWhileStoppingEndsAtOnce) {
  EXPECT_EXIT(stop_and(SIGTERM, Milliseconds(300), SIGINT, Milliseconds(200)),
              testing::ExitedWithCode(130), "SIGINT while stopping: exit at once");
  EXPECT_EXIT(stop_and(SIGUSR1, Milliseconds(300), SIGTERM, Milliseconds(200)),
              testing::ExitedWithCode(143), "SIGTERM while stopping: exit at once");
}

TEST_F(SignalsDeathTest, OneRequestByTwoWaysIsOne) {
  for (const int second : {SIGINT, SIGTERM}) {
    EXPECT_EXIT(stop_and(SIGINT, Milliseconds(10), second, std::chrono::seconds(60)),
                testing::ExitedWithCode(75), "SIGINT: checkpoint and stop");
  }
}

TEST_F(SignalsDeathTest, WhatRepeatsItselfNeverEndsAtOnce) {
  // The kernel sends SIGXCPU every second; a hang-up may come from every process above.
  EXPECT_EXIT(stop_and(SIGXCPU, Milliseconds(30), SIGXCPU, Milliseconds(20)),
              testing::ExitedWithCode(75), "SIGXCPU: check");
  EXPECT_EXIT(stop_and(SIGTERM, Milliseconds(30), SIGHUP, Milliseconds(20)),
              testing::ExitedWithCode(75), "SIGTERM: check");
}

void release_after(int number) {
  SignalWatcher watcher;
  if (number != 0) kill(getpid(), number);
  if (number != 0 && !requested_soon(watcher)) return;
  watcher.release();
  std::_Exit(blocked(SIGTERM) ? 1 : 0);
}

TEST_F(SignalsDeathTest, ReleasedSignalsDoWhatTheyWouldHaveDone) {
  EXPECT_EXIT(release_after(0), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(release_after(SIGHUP), testing::KilledBySignal(SIGHUP), "");
  EXPECT_EXIT(release_after(SIGTERM), testing::KilledBySignal(SIGTERM), "");
}

// SIGUSR1 is what ends the thread, also where the parent ignores it, and at any moment.
void release_at_once() {
  signal(SIGUSR1, SIG_IGN);
  alarm(60);
  for (int times = 0; times < 200; ++times) {
    SignalWatcher watcher;
    watcher.release();
  }
  std::_Exit(0);
}

TEST_F(SignalsDeathTest, ReleasesAtOnceWhereSigusr1IsIgnored) {
  EXPECT_EXIT(release_at_once(), testing::ExitedWithCode(0), "");
}

void watch_without_memory() {
  const rlimit none{1, RLIM_INFINITY};
  setrlimit(RLIMIT_AS, &none);  // a thread's stack is memory
  try {
    const SignalWatcher watcher;
  } catch (const Error& error) {
    std::fputs(error.what(), stderr);
    std::_Exit(blocked(SIGTERM) ? 1 : static_cast<int>(error.code()));
  }
}

TEST_F(SignalsDeathTest, AThreadThatCannotBeMadeIsAnError) {
  // A process of its own: this one keeps the stacks of earlier threads for the next.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(watch_without_memory(), testing::ExitedWithCode(70),
              "cannot make a thread: .*; raise");
}

}  // namespace
}  // namespace thinwire
