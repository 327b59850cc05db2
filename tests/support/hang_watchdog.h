// Ends a test binary that hangs, naming the test that it was in.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>

namespace thinwire::testing {

// A listener with a thread: every test must end within `limit`.
class HangWatchdog : public ::testing::EmptyTestEventListener {
 public:
  explicit HangWatchdog(std::chrono::seconds limit) : limit_(limit), thread_([this] { watch(); }) {}
  ~HangWatchdog() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void OnTestStart(const ::testing::TestInfo& info) override {
    const std::lock_guard lock(mutex_);
    test_ = std::string(info.test_suite_name()) + "." + info.name();
    ++number_;
    changed_.notify_all();
  }
  void OnTestEnd(const ::testing::TestInfo&) override {
    const std::lock_guard lock(mutex_);
    test_.clear();
    ++number_;
    changed_.notify_all();
  }

 private:
  void watch() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      const int seen = number_;
      const bool moved =
          changed_.wait_for(lock, limit_, [&] { return stopping_ || number_ != seen; });
      if (!moved && !test_.empty()) {
        std::fprintf(stderr, "HANG: %s did not end within %lld s\n", test_.c_str(),
                     static_cast<long long>(limit_.count()));
        std::fflush(nullptr);
        std::_Exit(70);
      }
    }
  }

  const std::chrono::seconds limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string test_;
  int number_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace thinwire::testing
