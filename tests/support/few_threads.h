// A process that may make a few threads more, and then no other.
#pragma once

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>

namespace thinwire::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadsCanBeFew = false;
#else
inline constexpr bool kThreadsCanBeFew = true;
#endif

// While it lives, new threads ask for stacks of a gigabyte, and there is address space for `count`.
class FewThreads {
 public:
  explicit FewThreads(int count) {
    pthread_attr_t large;
    EXPECT_EQ(::pthread_getattr_default_np(&attributes_), 0);
    EXPECT_EQ(::pthread_getattr_default_np(&large), 0);
    EXPECT_EQ(::pthread_attr_setstacksize(&large, kStack), 0);
    EXPECT_EQ(::pthread_setattr_default_np(&large), 0);
    ::pthread_attr_destroy(&large);
    std::uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    EXPECT_EQ(::getrlimit(RLIMIT_AS, &limit_), 0);
    rlimit little = limit_;
    little.rlim_cur = pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) +
                      static_cast<std::uint64_t>(count) * kStack + kStack / 2;
    EXPECT_EQ(::setrlimit(RLIMIT_AS, &little), 0);
  }
  FewThreads(const FewThreads&) = delete;
  FewThreads& operator=(const FewThreads&) = delete;
  ~FewThreads() {
    EXPECT_EQ(::setrlimit(RLIMIT_AS, &limit_), 0);
    EXPECT_EQ(::pthread_setattr_default_np(&attributes_), 0);
    ::pthread_attr_destroy(&attributes_);
  }

 private:
  static constexpr std::uint64_t kStack = std::uint64_t{1} << 30;
  pthread_attr_t attributes_{};
  rlimit limit_{};
};

}  // namespace thinwire::testing
