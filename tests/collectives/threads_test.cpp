#include "collectives/threads/thread_communicator.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/checked.h"
#include "collectives/metered.h"
#include "collectives/operation.h"
#include "collectives/staged.h"
#include "tests/conformance/groups.h"
#include "tests/support/few_threads.h"

namespace thinwire {
namespace {

using namespace std::chrono_literals;

class ThreadsConformance
    : public ::testing::TestWithParam<std::tuple<testing::ConformanceTest, int>> {};

TEST_P(ThreadsConformance, Holds) {
  const auto& [test, size] = GetParam();
  run_ranks(size, [&](auto communicator) { test.run(*communicator); });
}

TEST_P(ThreadsConformance, HoldsThroughTheDecorators) {
  const auto& [test, size] = GetParam();
  const auto meter = std::make_shared<Meter>();
  run_ranks(size, [&](auto communicator) {
    const auto decorated = make_metered(make_checked(std::move(communicator)), meter);
    test.run(*decorated);
  });
  EXPECT_GT(meter->total().calls, 0);
}

TEST_P(ThreadsConformance, HoldsThroughStaging) {
  const auto& [test, size] = GetParam();
  run_ranks(size, [&](auto communicator) {
    const auto queue = make_host_queue();
    test.run(*make_staged(std::move(communicator), *queue));
  });
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadsConformance,
                         ::testing::Combine(::testing::ValuesIn(testing::kConformanceTests),
                                            ::testing::Values(1, 2, 3, 4, 7, 8)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "Over" +
                                  std::to_string(std::get<1>(test.param));
                         });

class ThreadsGroups : public ::testing::TestWithParam<std::tuple<testing::ConformanceTest, int>> {};

TEST_P(ThreadsGroups, Holds) {
  const auto& [test, size] = GetParam();
  run_ranks(size, [&](auto communicator) { test.run(*communicator); });
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadsGroups,
                         ::testing::Combine(::testing::ValuesIn(testing::kGroupTests),
                                            ::testing::Values(1, 2, 3, 4)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "Over" +
                                  std::to_string(std::get<1>(test.param));
                         });

// Runs `body` on `size` ranks and returns each rank's error text ("" where there was none).
std::vector<std::string> errors_of(int size, std::function<void(Communicator&)> body,
                                   ThreadGroupOptions options = {}) {
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  auto group = make_thread_group(size, options);
  std::vector<std::thread> threads;
  for (auto& communicator : group) {
    threads.emplace_back([&] {
      try {
        body(*communicator);
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(communicator->rank())] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

TEST(Threads, ADeadlineNamesTheMissingRankAndPoisonsTheGroup) {
  const auto errors =
      errors_of(3,
                [](Communicator& communicator) {
                  if (communicator.rank() == 1) return;
                  at::Tensor tensor = at::zeros({4});
                  EXPECT_THROW(communicator.all_reduce(tensor, ReduceOp::sum)->wait(), PeerLost);
                  communicator.barrier()->wait();  // poisoned: throws at once
                },
                {.timeout = 100ms, .link = {}});
  EXPECT_NE(errors[0].find("all_reduce of 4 Float timed out"), std::string::npos) << errors[0];
  EXPECT_NE(errors[0].find("rank 1 did not arrive"), std::string::npos) << errors[0];
  EXPECT_EQ(errors[1], "");
  EXPECT_EQ(errors[2], errors[0]);
}

TEST(Threads, AbortGetsARankOutOfItsWait) {
  const auto start = Clock::now();
  const auto errors = errors_of(2, [](Communicator& communicator) {
    if (communicator.rank() == 1) {
      std::this_thread::sleep_for(50ms);
      communicator.abort("the operator said so");
      return;
    }
    communicator.barrier()->wait();
  });
  EXPECT_EQ(errors[0], "the operator said so");
  EXPECT_LT(Clock::now() - start, 10s);
}

TEST(Threads, AbortReachesGroupsSplitOff) {
  const auto errors = errors_of(2, [](Communicator& communicator) {
    const auto part = communicator.split(0, 0);
    if (communicator.rank() == 1) {
      communicator.abort("stop");
      return;
    }
    part->barrier()->wait();
  });
  EXPECT_EQ(errors[0], "stop");
}

TEST(Threads, AnExceptionOnOneRankEndsTheOthersAndIsRethrown) {
  try {
    run_ranks(4, [](auto communicator) {
      if (communicator->rank() == 2) throw DataError("bad file; fix it");
      communicator->barrier()->wait();
    });
    FAIL() << "nothing was thrown";
  } catch (const DataError& error) {
    EXPECT_STREQ(error.what(), "bad file; fix it");
  }
}

TEST(Threads, TheRankThatFailedIsNamedNotThePeerThatLostIt) {
  // Rank 0's Work aborts the group while rank 0 unwinds, so rank 1 is first to report.
  EXPECT_THROW(run_ranks(2,
                         [](auto communicator) {
                           at::Tensor tensor = at::zeros({1});
                           if (communicator->rank() == 1) {
                             communicator->all_reduce(tensor, ReduceOp::sum)->wait();
                             return;
                           }
                           struct Slow {
                             ~Slow() { std::this_thread::sleep_for(100ms); }
                           } after;
                           const auto work = communicator->all_reduce(tensor, ReduceOp::sum);
                           throw DataError("the cause; mend it");
                         }),
               DataError);
}

TEST(Threads, ADroppedWorkAbortsTheGroup) {
  const auto errors = errors_of(2, [](Communicator& communicator) {
    at::Tensor tensor = at::zeros({1});
    auto work = communicator.all_reduce(tensor, ReduceOp::sum);
    if (communicator.rank() == 0) {
      work.reset();
    } else {
      work->wait();
    }
  });
  EXPECT_NE(errors[1].find("rank 0 dropped an operation"), std::string::npos) << errors[1];
}

TEST(Threads, DifferentCallsAreRefusedNotMixedUp) {
  const auto errors = errors_of(2, [](Communicator& communicator) {
    at::Tensor tensor = at::zeros({communicator.rank() == 0 ? 4 : 5});
    communicator.all_reduce(tensor, ReduceOp::sum)->wait();
  });
  EXPECT_NE((errors[0] + errors[1]).find("every rank must call the same"), std::string::npos);
}

TEST(Threads, TheSimulatedWireTakesItsTimeOneOperationAfterTheOther) {
  const auto start = Clock::now();
  // Two all_reduces of 1 MB on two ranks send 1 MB each: 2 x 50 ms, plus 2 x 5 ms latency.
  run_ranks(2,
            [](auto communicator) {
              at::Tensor a = at::zeros({250000});
              at::Tensor b = at::zeros({250000});
              auto first = communicator->all_reduce(a, ReduceOp::sum);
              auto second = communicator->all_reduce(b, ReduceOp::sum);
              first->wait();
              second->wait();
            },
            {.timeout = 60s, .link = {.latency = 5ms, .bytes_per_second = 20e6}});
  EXPECT_GE(Clock::now() - start, 110ms);
}

struct Misuse {
  const char* name;
  std::function<void(Communicator&)> call;
  const char* expected;
};

TEST(Checked, EveryRankGetsTheSameSentence) {
  const Misuse misuses[] = {
      {"dtype",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4}, c.rank() == 0 ? at::kFloat : at::kInt);
         c.all_reduce(t, ReduceOp::sum)->wait();
       },
       "rank 0 is about to all_reduce 4 Float"},
      {"count",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4 + c.rank()});
         c.all_reduce(t, ReduceOp::sum)->wait();
       },
       "all_reduce 5 Float"},
      {"operation",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4});
         if (c.rank() == 0) {
           c.broadcast(t, 0)->wait();
         } else {
           c.barrier()->wait();
         }
       },
       "broadcast 4 Float"},
      {"op",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4});
         c.all_reduce(t, c.rank() == 0 ? ReduceOp::sum : ReduceOp::max)->wait();
       },
       "matching sizes"},
      {"root",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4});
         c.broadcast(t, c.rank())->wait();
       },
       "root 1"},
      {"all_to_all counts",
       [](Communicator& c) {
         at::Tensor in = at::zeros({4});
         at::Tensor out = at::zeros({4});
         if (c.rank() == 0) {
           c.all_to_all(out, in, {2, 2}, {2, 2})->wait();
         } else {
           c.all_to_all(out, in, {1, 3}, {2, 2})->wait();
         }
       },
       "all_to_all"},
  };
  for (const auto& misuse : misuses) {
    const auto errors = errors_of(2, [&](Communicator& communicator) {
      // The decorator owns what it is given; the group belongs to the test.
      struct Borrowed final : OperationCommunicator {
        explicit Borrowed(Communicator& c)
            : OperationCommunicator(c.rank(), c.size(), c.timeout()), owner(c) {}
        std::unique_ptr<Work> post(Operation call) override { return forward(owner, call); }
        std::unique_ptr<Communicator> split(int color, int key) override {
          return owner.split(color, key);
        }
        void abort(const std::string& reason) override { owner.abort(reason); }
        Communicator& owner;
      };
      const auto checked = make_checked(std::make_unique<Borrowed>(communicator));
      misuse.call(*checked);
    });
    EXPECT_NE(errors[0].find(misuse.expected), std::string::npos)
        << misuse.name << ": " << errors[0];
    EXPECT_EQ(errors[0], errors[1]) << misuse.name;
  }
}

TEST(Metered, CountsCallsAndBytes) {
  run_ranks(4, [](auto communicator) {
    std::vector<std::string> seen;
    const auto meter = std::make_shared<Meter>(
        [&](const OperationRecord& record) { seen.push_back(record.name); });
    const auto metered = make_metered(std::move(communicator), meter);
    at::Tensor tensor = at::zeros({400});
    metered->all_reduce(tensor, ReduceOp::sum)->wait();
    metered->barrier()->wait();
    EXPECT_EQ(meter->total().calls, 2);
    EXPECT_EQ(meter->total().bytes_logical, 1600);
    EXPECT_EQ(static_cast<double>(meter->total().bytes_sent), ring_bytes(1600, 4));
    EXPECT_EQ(seen, (std::vector<std::string>{"all_reduce", "barrier"}));
  });
}

TEST(Threads, WhereOneCannotBeMadeNoRankBegins) {
  if (!testing::kThreadsCanBeFew) GTEST_SKIP() << "a sanitizer needs the address space";
  const testing::FewThreads few(2);
  std::atomic<int> begun = 0;
  try {
    run_ranks(3, [&](auto) { ++begun; });
    ADD_FAILURE() << "three ranks ran";
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("cannot make a thread: ")) << error.what();
  }
  EXPECT_EQ(begun, 0);
  run_ranks(2, [&](auto) { ++begun; });
  EXPECT_EQ(begun, 2);
}

}  // namespace
}  // namespace thinwire
