#include "collectives/sockets/socket_communicator.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <functional>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/sockets/mesh.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/conformance/groups.h"
#include "tests/support/notebook.h"

namespace thinwire {
namespace {

using namespace std::chrono_literals;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using testing::Notebook;

using Body = std::function<void(std::unique_ptr<Communicator>)>;

// Runs `body` on ranks that are threads with sockets of their own. Returns each rank's error text
// ("" where there was none).
std::vector<std::string> errors_of(int size, const Body& body, SocketOptions base = {}) {
  Notebook notebook;
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        SocketOptions options = base;
        options.rank = rank;
        options.size = size;
        body(make_socket_communicator(options, notebook));
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(rank)] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

void run_socket_ranks(int size, const Body& body, SocketOptions base = {}) {
  for (const std::string& error : errors_of(size, body, base)) EXPECT_EQ(error, "");
}

class SocketsConformance
    : public ::testing::TestWithParam<std::tuple<testing::ConformanceTest, int>> {};

TEST_P(SocketsConformance, Holds) {
  const auto& [test, size] = GetParam();
  run_socket_ranks(size, [&](auto communicator) { test.run(*communicator); });
}

TEST_P(SocketsConformance, HoldsInTinyPieces) {
  const auto& [test, size] = GetParam();
  SocketOptions options;
  options.chunk_bytes = 64;
  run_socket_ranks(
      size, [&](auto communicator) { test.run(*communicator); }, options);
}

INSTANTIATE_TEST_SUITE_P(Sockets, SocketsConformance,
                         ::testing::Combine(::testing::ValuesIn(testing::kConformanceTests),
                                            ::testing::Values(1, 2, 3, 4, 7)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "Over" +
                                  std::to_string(std::get<1>(test.param));
                         });

class SocketsGroups : public ::testing::TestWithParam<std::tuple<testing::ConformanceTest, int>> {};

TEST_P(SocketsGroups, Holds) {
  const auto& [test, size] = GetParam();
  run_socket_ranks(size, [&](auto communicator) { test.run(*communicator); });
}

INSTANTIATE_TEST_SUITE_P(Sockets, SocketsGroups,
                         ::testing::Combine(::testing::ValuesIn(testing::kGroupTests),
                                            ::testing::Values(1, 2, 3, 4)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "Over" +
                                  std::to_string(std::get<1>(test.param));
                         });

// --- Sums and progress --------------------------------------------------------------------------

// Terms of very different sizes: any other order of additions rounds differently.
at::Tensor rough(int rank, std::int64_t count) {
  at::Tensor tensor = at::empty({count});
  for (std::int64_t i = 0; i < count; ++i) {
    const auto mixed = static_cast<std::uint32_t>((i + 1) * 2654435761 + rank * 40503);
    tensor.data_ptr<float>()[i] =
        std::ldexp(static_cast<float>(mixed % 4097) - 2048.0f, static_cast<int>(mixed >> 28));
  }
  return tensor;
}

TEST(Sockets, SumsHaveTheBitsOfTheThreadsBackend) {
  constexpr std::int64_t kCount = 70003;
  for (const int size : {2, 3, 5}) {
    at::Tensor expected;
    run_ranks(size, [&](auto communicator) {
      at::Tensor tensor = rough(communicator->rank(), kCount);
      communicator->all_reduce(tensor, ReduceOp::sum)->wait();
      if (communicator->rank() == 0) expected = tensor;
    });
    SocketOptions options;
    options.chunk_bytes = 4099;  // no multiple of an element, nor a divisor of anything
    run_socket_ranks(
        size,
        [&](auto communicator) {
          at::Tensor tensor = rough(communicator->rank(), kCount);
          communicator->all_reduce(tensor, ReduceOp::sum)->wait();
          EXPECT_EQ(std::memcmp(tensor.data_ptr(), expected.data_ptr(), kCount * sizeof(float)), 0);
        },
        options);
  }
}

TEST(Sockets, ManyLargeOperationsMayBeWaitedForInAnotherOrderOnEachRank) {
  run_socket_ranks(3, [](auto communicator) {
    // More than all socket buffers hold, in the job's group and in a part of it.
    constexpr std::int64_t kCount = 2000000;
    constexpr std::size_t kOperations = 6;
    const auto part = communicator->split(0, 0);
    std::vector<at::Tensor> tensors;
    std::vector<std::unique_ptr<Work>> works;
    for (std::size_t i = 0; i < kOperations; ++i) {
      tensors.push_back(at::full({kCount}, static_cast<float>(communicator->rank() + 1)));
      Communicator& group = i % 2 == 0 ? *communicator : *part;
      works.push_back(group.all_reduce(tensors.back(), ReduceOp::sum));
    }
    for (std::size_t i = 0; i < kOperations; ++i) {
      const std::size_t mine =
          (i * 5 + 2 * static_cast<std::size_t>(communicator->rank())) % kOperations;
      works[mine]->wait();
      EXPECT_TRUE(tensors[mine].eq(6.0f).all().item<bool>());
    }
  });
}

TEST(Sockets, TwoThreadsMayWaitOnTwoGroups) {
  run_socket_ranks(2, [](auto communicator) {
    const auto part = communicator->split(0, 0);
    const auto sums = [&](Communicator& group, float value) {
      for (int i = 0; i < 50; ++i) {
        at::Tensor tensor = at::full({10000}, value);
        group.all_reduce(tensor, ReduceOp::sum)->wait();
        EXPECT_TRUE(tensor.eq(2 * value).all().item<bool>());
      }
    };
    std::thread other([&] { sums(*part, 3.0f); });
    sums(*communicator, 5.0f);
    other.join();
  });
}

TEST(Sockets, SplitsOfSplitsWorkAgainAndAgain) {
  run_socket_ranks(4, [](auto communicator) {
    for (int round = 0; round < 5; ++round) {
      const auto half = communicator->split(communicator->rank() / 2, 0);
      const auto single = half->split(half->rank(), 0);
      EXPECT_EQ(single->size(), 1);
      at::Tensor tensor = at::full({5}, static_cast<float>(communicator->rank()));
      half->all_reduce(tensor, ReduceOp::sum)->wait();
      EXPECT_TRUE(tensor.equal(at::full({5}, communicator->rank() < 2 ? 1.0f : 5.0f)));
      single->barrier()->wait();
    }
  });
}

// Rank 0 sends `tensor` to rank 1 and needs nothing from it.
void one_way(Communicator& communicator, at::Tensor tensor, Deadline deadline) {
  const std::int64_t count = tensor.numel();
  at::Tensor nothing = at::empty({0}, tensor.options());
  if (communicator.rank() == 0) {
    communicator.all_to_all(nothing, tensor, {0, 0}, {0, count})->wait(deadline);
  } else {
    communicator.all_to_all(tensor, nothing, {count, 0}, {0, 0})->wait(deadline);
  }
}

TEST(Sockets, WhatCameBeforeItsCallIsKeptAndWhoLeftIsMissedOnlyWhenNeeded) {
  std::atomic<bool> left{false};
  const auto errors = errors_of(2, [&](auto communicator) {
    const Deadline deadline = Clock::now() + 60s;
    if (communicator->rank() == 0) {
      for (int i = 0; i < 10; ++i) {
        one_way(*communicator, at::full({1000}, static_cast<float>(i)), deadline);
      }
      communicator.reset();
      left = true;
      return;
    }
    while (!left) std::this_thread::sleep_for(1ms);
    for (int i = 0; i < 10; ++i) {
      at::Tensor tensor = at::zeros({1000});
      one_way(*communicator, tensor, deadline);
      EXPECT_TRUE(tensor.equal(at::full({1000}, static_cast<float>(i))));
    }
    communicator->barrier()->wait();
  });
  EXPECT_EQ(errors[0], "");
  EXPECT_THAT(errors[1],
              HasSubstr("rank 0 left the group before barrier, which the others are in"));
}

TEST(Sockets, ARankRunsAheadOfAPeerByNoMoreThanWhatIsDocumented) {
  constexpr std::int64_t kBytes = 16 << 10;
  std::atomic<int> sent{0};
  std::atomic<bool> stuck{false};
  const auto errors = errors_of(2, [&](auto communicator) {
    if (communicator->rank() == 0) {
      try {
        for (;; ++sent) {
          one_way(*communicator, at::zeros({kBytes}, at::kByte), Clock::now() + 300ms);
        }
      } catch (const PeerLost&) {
        stuck = true;
        throw;
      }
    }
    while (!stuck) std::this_thread::sleep_for(1ms);
    communicator->barrier()->wait();
  });
  EXPECT_GT(sent, 1);
  EXPECT_LE(sent * kBytes, 256 << 10);
  EXPECT_THAT(errors[0], HasSubstr("rank 1 did not take part"));
  EXPECT_EQ(errors[0], errors[1]);
}

// --- Errors -------------------------------------------------------------------------------------

TEST(Sockets, ADeadlineEndsAWaitNamesWhoIsMissingAndReachesHim) {
  std::atomic<int> failed{0};
  SocketOptions options;
  options.timeout = 2000ms;
  const auto errors = errors_of(
      3,
      [&](auto communicator) {
        at::Tensor tensor = at::zeros({1000});
        if (communicator->rank() == 2) {
          while (failed < 2) std::this_thread::sleep_for(1ms);
          communicator->barrier()->wait();
          return;
        }
        try {
          communicator->all_reduce(tensor, ReduceOp::sum)->wait(Clock::now() + 200ms);
        } catch (const PeerLost&) {
          EXPECT_THROW(communicator->barrier(), PeerLost);
          ++failed;
          throw;
        }
      },
      options);
  for (const std::string& error : errors) {
    EXPECT_THAT(error, HasSubstr("all_reduce of 1000 Float timed out on rank"));
    // If the other one is late too, it is named as well.
    EXPECT_THAT(error, ContainsRegex("rank ([01], )?2 did not take part"));
  }
}

TEST(Sockets, AbortFromAnotherThreadEndsTheWaitHereAndOnPeers) {
  std::atomic<bool> aborted{false};
  const auto errors = errors_of(3, [&](auto communicator) {
    std::thread other;
    if (communicator->rank() == 0) {
      other = std::thread([&] {
        std::this_thread::sleep_for(100ms);  // by now the wait below is in poll()
        communicator->abort("rank 0 gave up");
        aborted = true;
      });
    }
    try {
      // Rank 2 has not called when the others are told, and hears of it in its next waits.
      while (communicator->rank() == 2 && !aborted) std::this_thread::sleep_for(1ms);
      communicator->barrier()->wait();
      communicator->barrier()->wait();
    } catch (...) {
      if (other.joinable()) other.join();
      throw;
    }
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "rank 0 gave up");
}

TEST(Sockets, AbortWakesAWaitThatHearsNothingFromPeers) {
  std::atomic<bool> ended{false};
  SocketOptions options;
  options.timeout = 20s;
  const auto errors = errors_of(
      2,
      [&](auto communicator) {
        if (communicator->rank() == 1) {
          while (!ended) std::this_thread::sleep_for(1ms);
          return;
        }
        auto work = communicator->barrier();
        std::thread other([&] {
          std::this_thread::sleep_for(100ms);  // by now the wait below is in poll()
          communicator->abort("rank 0 gave up");
        });
        const auto start = Clock::now();
        try {
          work->wait();
        } catch (...) {
          EXPECT_LT(Clock::now(), start + 20s);
          ended = true;
          other.join();
          throw;
        }
      },
      options);
  EXPECT_EQ(errors[0], "rank 0 gave up");
  EXPECT_EQ(errors[1], "");
}

TEST(Sockets, APartThatEndedInTheMiddleOfAFrameLeavesTheOthersInStep) {
  SocketOptions options;
  options.chunk_bytes = 32 << 20;
  std::atomic<bool> ended{false};
  run_socket_ranks(
      2,
      [&ended](auto communicator) {
        const auto part = communicator->split(0, 0);
        constexpr std::int64_t kCount = 8000000;
        if (communicator->rank() == 0) {
          // Both have called, so frames larger than all socket buffers are under way.
          at::Tensor tensor = at::zeros({kCount});
          auto work = part->all_reduce(tensor, ReduceOp::sum);
          EXPECT_THROW(work->wait(Clock::now() + 300ms), PeerLost);
          ended = true;
        } else {
          at::Tensor tensor = at::zeros({kCount});
          auto work = part->all_reduce(tensor, ReduceOp::sum);
          while (!ended) std::this_thread::sleep_for(1ms);
          EXPECT_THROW(work->wait(), PeerLost);
        }
        EXPECT_THROW(part->barrier(), PeerLost);
        at::Tensor tensor = at::ones({100000});
        communicator->all_reduce(tensor, ReduceOp::sum)->wait();
        EXPECT_TRUE(tensor.eq(2.0f).all().item<bool>());
      },
      options);
}

TEST(Sockets, ADroppedOperationEndsTheGroup) {
  const auto errors = errors_of(2, [](auto communicator) {
    at::Tensor tensor = at::zeros({1});
    auto work = communicator->all_reduce(tensor, ReduceOp::sum);
    if (communicator->rank() == 0) {
      work.reset();
    } else {
      work->wait();
      communicator->barrier()->wait();
    }
  });
  EXPECT_THAT(errors[1], HasSubstr("rank 0 dropped all_reduce of 1 Float"));
}

// Whether a peer may overwrite terms that this rank has not sent yet.
TEST(Sockets, AResultThatComesBeforeItsTermsHaveLeftIsRefused) {
  SocketOptions options;
  options.size = 2;
  options.timeout = 5000ms;
  options.chunk_bytes = 64;
  std::vector<sockets::Connections> connections(2);
  std::vector<net::Descriptor> peer;
  for (net::Descriptor* ours : {&connections[1].data, &connections[1].notices}) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    *ours = net::Descriptor(ends[0]);
    peer.emplace_back(ends[1]);
  }
  sockets::Mesh mesh(options, std::move(connections));
  at::Tensor tensor = at::ones({37});
  const auto operation = mesh.post(mesh.world(), make_all_reduce(tensor, ReduceOp::sum, 2));
  // Rank 1 calls the same sum, of which this rank owns 19 elements, and has a result at once.
  BlockPool pool(64);
  const sockets::PendingOperation theirs(
      operation->id(), make_all_reduce(at::zeros({37}), ReduceOp::sum, 2), 1, 2, 64, pool);
  sockets::FrameHeader result = theirs.header(0, sockets::FrameKind::second);
  result.bytes = 64;
  const std::array<sockets::FrameHeader, 2> headers{theirs.header(0, sockets::FrameKind::call),
                                                    result};
  const std::array<char, 64> payload{};
  ASSERT_EQ(::send(peer[0].get(), headers.data(), sizeof headers, 0),
            static_cast<ssize_t>(sizeof headers));
  ASSERT_EQ(::send(peer[0].get(), payload.data(), payload.size(), 0), 64);
  try {
    mesh.wait(mesh.world(), *operation, Clock::now() + 60s);
    ADD_FAILURE() << "it was taken";
  } catch (const RanksDisagree& error) {
    EXPECT_THAT(error.what(), HasSubstr("rank 1 sent a result before it had all terms of it"));
  }
  EXPECT_TRUE(tensor.equal(at::ones({37})));
  peer.clear();
}

struct Misuse {
  const char* name;
  std::function<void(Communicator&)> call;
  std::vector<const char*> expected;  // one of these; which rank notices first is open
};

TEST(Sockets, DifferentCallsAreRefusedNotMixedUp) {
  const Misuse misuses[] = {
      {"size",
       [](Communicator& c) {
         at::Tensor t = at::zeros({c.rank() == 0 ? 2000 : 1000});
         c.all_reduce(t, ReduceOp::sum)->wait();
       },
       {"rank 1 sent 2000 bytes where 4000 were expected in all_reduce of 2000 Float: ranks called "
        "different operations",
        "rank 0 sent 4000 bytes where 2000 were expected in all_reduce of 1000 Float"}},
      {"large size",
       [](Communicator& c) {
         at::Tensor t = at::zeros({c.rank() == 0 ? 2000000 : 1000000});
         c.all_reduce(t, ReduceOp::sum)->wait();
       },
       {"rank 1 sent 2000000 bytes where 4000000 were expected",
        "rank 0 sent 4000000 bytes where 2000000 were expected"}},
      {"dtype",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4}, c.rank() == 0 ? at::kFloat : at::kInt);
         c.all_reduce(t, ReduceOp::sum)->wait();
       },
       {"rank 1 called all_reduce (sum) of Int where all_reduce (sum) of Float was expected",
        "rank 0 called all_reduce (sum) of Float where all_reduce (sum) of Int was expected"}},
      {"operation",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4});
         if (c.rank() == 0) {
           c.broadcast(t, 0)->wait();
         } else {
           c.barrier()->wait();
         }
       },
       {"rank 1 called barrier where broadcast of Float was expected",
        "rank 0 called broadcast of Float where barrier was expected"}},
      {"op",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4});
         c.all_reduce(t, c.rank() == 0 ? ReduceOp::sum : ReduceOp::max)->wait();
       },
       {"rank 1 called all_reduce (max)", "rank 0 called all_reduce (sum)"}},
      {"root",
       [](Communicator& c) {
         at::Tensor t = at::zeros({4});
         c.broadcast(t, c.rank())->wait();
       },
       {"sent 8 bytes where 0 were expected in broadcast"}},
  };
  for (const auto& misuse : misuses) {
    const auto errors = errors_of(2, [&](auto communicator) {
      try {
        misuse.call(*communicator);
        communicator->barrier()->wait();
        ADD_FAILURE() << misuse.name;
      } catch (const RanksDisagree&) {
        throw;
      }
    });
    for (const std::string& error : errors) {
      bool found = false;
      for (const char* text : misuse.expected) {
        found = found || error.find(text) != std::string::npos;
      }
      EXPECT_TRUE(found) << misuse.name << ": " << error;
    }
  }
}

// --- Processes ----------------------------------------------------------------------------------

// A rank in a process of its own, whose output the test reads.
class Process {
 public:
  Process(const std::string& folder, int rank, int size, std::chrono::milliseconds timeout) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    std::vector<std::string> words = {THINWIRE_SOCKETS_RANK, std::to_string(rank),
                                      std::to_string(size), folder,
                                      std::to_string(timeout.count())};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    EXPECT_EQ(::posix_spawn(&pid_, words[0].c_str(), &actions, nullptr, arguments.data(), environ),
              0);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    output_ = ::fdopen(ends[0], "r");
  }
  ~Process() {
    if (pid_ > 0) {
      signal(SIGKILL);
      exit_code();
    }
    std::fclose(output_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void signal(int number) const { ::kill(pid_, number); }
  std::string line() {
    std::string text(1000, '\0');
    if (std::fgets(text.data(), static_cast<int>(text.size()), output_) == nullptr) return "";
    return text.substr(0, text.find('\n'));
  }
  int exit_code() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = 0;
  FILE* output_ = nullptr;
};

using Job = std::vector<std::unique_ptr<Process>>;

// `size` ranks that have met and are summing.
Job start_job(int size, std::chrono::milliseconds timeout) {
  std::string folder = ::testing::TempDir() + "thinwire-sockets-XXXXXX";
  EXPECT_NE(::mkdtemp(folder.data()), nullptr);
  Job job;
  for (int rank = 0; rank < size; ++rank) {
    job.push_back(std::make_unique<Process>(folder, rank, size, timeout));
  }
  for (auto& process : job) EXPECT_EQ(process->line(), "ready");
  std::filesystem::remove_all(folder);
  return job;
}

TEST(SocketsProcesses, SurvivorsOfAKilledRankNameIt) {
  // Long before the timeout, or this test would be in the hands of the watchdog.
  auto job = start_job(4, 1000s);
  job[2]->signal(SIGKILL);
  for (const std::size_t rank : {0, 1, 3}) {
    EXPECT_EQ(job[rank]->line(), "rank 2 closed its connection; look there for why");
    EXPECT_EQ(job[rank]->exit_code(), 71);
  }
}

TEST(SocketsProcesses, ADeadlineNamesARankThatIsStopped) {
  auto job = start_job(3, 3000ms);
  job[1]->signal(SIGSTOP);
  for (const std::size_t rank : {0, 2}) {
    const std::string line = job[rank]->line();
    // It may have been stopped in the middle, so that it held up others too.
    EXPECT_THAT(line, ContainsRegex("timed out on rank .*: rank (0, )?1(, 2)? (did|took|does) "));
    EXPECT_EQ(job[rank]->exit_code(), 71);
  }
  job[1]->signal(SIGCONT);
  EXPECT_THAT(job[1]->line(), HasSubstr("timed out on rank"));
}

}  // namespace
}  // namespace thinwire
