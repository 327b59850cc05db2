// The NCCL backend's own code on simulated devices.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <atomic>
#include <functional>
#include <thread>
#include <utility>

#include "collectives/base/error.h"
#include "tests/collectives/nccl_scenario.h"
#include "tests/conformance/suite.h"
#include "tests/support/simulator/ranks.h"

namespace thinwire {
namespace {

using namespace std::chrono_literals;
using testing::DeviceRank;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::run_on_devices;
using testing::Simulator;

// No rank threw, and the simulator saw no misuse and nothing left behind.
void expect_clean(const Simulator& simulator, const std::vector<std::string>& errors) {
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  EXPECT_THAT(simulator.failures(), IsEmpty());
  EXPECT_THAT(simulator.leaks(), IsEmpty());
}

void run_conformance(const testing::ConformanceTest& test, int size, std::uint64_t seed,
                     NcclOptions options = {}) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  Simulator simulator({.devices = size, .seed = seed});
  const auto errors = run_on_devices(simulator, size, options, [&](const DeviceRank& rank) {
    const auto view = testing::make_host_view(rank);
    test.run(*view);
  });
  expect_clean(simulator, errors);
}

class NcclConformance : public ::testing::TestWithParam<std::tuple<testing::ConformanceTest, int>> {
};

TEST_P(NcclConformance, Holds) {
  const auto& [test, size] = GetParam();
  if (test.run == testing::sums_are_formed_in_the_order_of_a_ring) {
    GTEST_SKIP() << "NCCL chooses the order in which it adds";
  }
  for (std::uint64_t seed = 0; seed < 200; ++seed) run_conformance(test, size, seed);
}

TEST_P(NcclConformance, HoldsInPieces) {
  const auto& [test, size] = GetParam();
  if (test.run == testing::sums_are_formed_in_the_order_of_a_ring) {
    GTEST_SKIP() << "NCCL chooses the order in which it adds";
  }
  NcclOptions options;
  options.max_elements_per_call = 999;
  run_conformance(test, size, 77, options);
}

INSTANTIATE_TEST_SUITE_P(Nccl, NcclConformance,
                         ::testing::Combine(::testing::ValuesIn(testing::kConformanceTests),
                                            ::testing::Values(1, 2, 4)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "Over" +
                                  std::to_string(std::get<1>(test.param));
                         });

TEST(NcclSimulated, ResultsAreRightInEveryLegalOrder) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    EXPECT_THAT(testing::nccl_scenario(seed, {}).problems, IsEmpty()) << "seed " << seed;
  }
}

// Equal shares take NCCL's own collective, uneven ones do not: the results are the same.
TEST(NcclSimulated, EqualSharesTakeTheNativeCollectives) {
  for (const auto path : {AllToAllPath::send_receive, AllToAllPath::native_if_equal}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      Simulator simulator({.devices = 3, .seed = seed});
      NcclOptions options;
      options.all_to_all = path;
      const auto errors = run_on_devices(simulator, 3, options, [&](const DeviceRank& rank) {
        const auto view = testing::make_host_view(rank);
        const at::Tensor input = at::arange(6) + 10 * rank.rank();
        at::Tensor exchanged = at::full({6}, -1L, at::kLong);
        view->all_to_all(exchanged, input, {}, {})->wait();
        at::Tensor share = at::full({2}, -1L, at::kLong);
        view->reduce_scatter(share, input, ReduceOp::max, {})->wait();
        for (int peer = 0; peer < 3; ++peer) {
          const at::Tensor sent = at::arange(6) + 10 * peer;
          EXPECT_TRUE(exchanged.narrow(0, 2 * peer, 2).equal(sent.narrow(0, 2 * rank.rank(), 2)));
        }
        const at::Tensor last = at::arange(6) + 20;
        EXPECT_TRUE(share.equal(last.narrow(0, 2 * rank.rank(), 2)));
      });
      expect_clean(simulator, errors);
    }
  }
}

TEST(NcclSimulated, AHostTensorIsRefused) {
  Simulator simulator({.devices = 1});
  const CudaApi& cuda = simulator.cuda();
  cuda.set_device(0);
  const auto communicator =
      make_nccl_communicator(make_nccl_id(simulator.nccl()), 0, 1, {}, simulator.nccl(), cuda);
  try {
    communicator->all_reduce(at::zeros({2}), ReduceOp::sum)->wait();
    FAIL() << "nothing was thrown";
  } catch (const Bug& error) {
    EXPECT_THAT(error.what(), HasSubstr("all_reduce: NCCL moves tensors of a device"));
  }
}

// A rank's tensors and an event; tasks that never run may still point here.
struct Parts {
  at::Tensor tensor = at::zeros({4});
};

TEST(NcclSimulated, AStalledPeerIsNoticedAtTheDeadlineByTheHostWait) {
  std::vector<Parts> parts(2);
  Simulator simulator({.devices = 2});
  const auto errors = run_on_devices(simulator, 2, {}, [&](const DeviceRank& rank) {
    rank.communicator.barrier()->wait();
    if (rank.rank() == 1) simulator.stall(1);
    auto work = rank.communicator.all_reduce(parts[static_cast<std::size_t>(rank.rank())].tensor,
                                             ReduceOp::sum);
    work->wait(Clock::now() + 200ms);  // returns: only the stream waits
    Event verdict(simulator.cuda());
    verdict.record(rank.stream);
    rank.communicator.host_wait(verdict, "the verdict", Clock::now() + 1h);
  });
  // One of the two looks first; the other hears of its abort.
  const std::string& first =
      errors[0].find("timed out") != std::string::npos ? errors[0] : errors[1];
  const int rank = &first == &errors[0] ? 0 : 1;
  EXPECT_THAT(first, HasSubstr("all_reduce of 4 Float timed out on rank " + std::to_string(rank) +
                               ": rank " + std::to_string(1 - rank) + " did not take part"));
  EXPECT_NE(errors[0], "");
  EXPECT_NE(errors[1], "");
  EXPECT_THAT(simulator.failures(), IsEmpty());
}

TEST(NcclSimulated, APeerThatNeverCallsIsNamedByWhoKnows) {
  std::vector<Parts> parts(3);
  Simulator simulator({.devices = 3});
  NcclOptions options;
  options.explain_stall = [] { return std::string("rank 2 is at step 7, all others at step 8"); };
  std::atomic<int> lost = 0;
  const auto errors = run_on_devices(simulator, 3, options, [&](const DeviceRank& rank) {
    if (rank.rank() == 2) {
      while (lost.load() < 2) std::this_thread::sleep_for(1ms);
      throw PeerLost("left too");
    }
    auto work = rank.communicator.all_reduce(parts[static_cast<std::size_t>(rank.rank())].tensor,
                                             ReduceOp::sum);
    work->wait(Clock::now() + 200ms);
    try {
      while (true) {
        rank.communicator.poll();
        std::this_thread::sleep_for(1ms);
      }
    } catch (const PeerLost&) {
      ++lost;
      EXPECT_THROW(rank.communicator.barrier(), PeerLost);  // poisoned
      throw;
    }
  });
  const std::string expected =
      "timed out on rank 0: rank 2 is at step 7, all others at step 8; see why, or raise the "
      "timeout";
  EXPECT_TRUE(errors[0].find(expected) != std::string::npos ||
              errors[1].find("rank 2 is at step 7") != std::string::npos)
      << errors[0] << "\n"
      << errors[1];
  EXPECT_THAT(simulator.failures(), IsEmpty());
  EXPECT_THAT(simulator.leaks(), IsEmpty());
}

TEST(NcclSimulated, AnAsynchronousErrorSaysWhatFailed) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    std::vector<Parts> parts(2);
    Simulator simulator({.devices = 2, .seed = seed});
    const auto errors = run_on_devices(simulator, 2, {}, [&](const DeviceRank& rank) {
      rank.communicator.barrier()->wait();
      simulator.break_communicators(rank.rank(), ncclRemoteError);
      auto work = rank.communicator.all_reduce(parts[static_cast<std::size_t>(rank.rank())].tensor,
                                               ReduceOp::sum);
      work->wait();
    });
    for (const std::string& error : errors) {
      EXPECT_THAT(error, HasSubstr("NCCL says 'remote process exited"));
      EXPECT_THAT(error, HasSubstr("see what happened to the peers"));
    }
    EXPECT_THAT(simulator.failures(), IsEmpty());
    EXPECT_THAT(simulator.leaks(), IsEmpty());
  }
}

TEST(NcclSimulated, AbortFromAnotherThreadGetsARankOutOfItsWait) {
  std::vector<Parts> parts(2);
  Simulator simulator({.devices = 2});
  const auto errors = run_on_devices(simulator, 2, {}, [&](const DeviceRank& rank) {
    if (rank.rank() == 1) simulator.stall(1);
    auto work = rank.communicator.all_reduce(parts[static_cast<std::size_t>(rank.rank())].tensor,
                                             ReduceOp::sum);
    work->wait();
    Event verdict(simulator.cuda());
    verdict.record(rank.stream);
    std::thread watchdog([&] {
      std::this_thread::sleep_for(50ms);
      rank.communicator.abort("the operator said so");  // on a thread without a device
    });
    try {
      rank.communicator.host_wait(verdict, "the verdict", Clock::now() + 1h);
    } catch (...) {
      watchdog.join();
      throw;
    }
    watchdog.join();
  });
  // The second to abort may hear of the first from NCCL.
  EXPECT_TRUE(errors[0] == "the operator said so" || errors[1] == "the operator said so");
  EXPECT_NE(errors[0], "");
  EXPECT_NE(errors[1], "");
  EXPECT_THAT(simulator.failures(), IsEmpty());
}

TEST(NcclSimulated, ACallThatFailsInAGroupIsReportedAndTheGroupEnded) {
  std::vector<Parts> parts(2);
  const at::Tensor ones = at::ones({4});
  Simulator simulator({.devices = 2});
  const auto errors = run_on_devices(simulator, 1, {}, [&](const DeviceRank& rank) {
    simulator.refuse_calls(0, ncclInvalidArgument);
    try {
      rank.communicator.all_reduce(parts[0].tensor, ReduceOp::sum)->wait();
      FAIL() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("all_reduce of 4 Float failed on rank 0: NCCL says "
                                          "'invalid argument'"));
    }
    // On the same thread, another group: its calls would stay in the open one.
    simulator.cuda().set_device(1);
    const Stream stream(simulator.cuda());
    NcclOptions options;
    options.stream = stream.get();
    options.is_device_tensor = &testing::any_tensor;
    const auto other = make_nccl_communicator(make_nccl_id(simulator.nccl()), 0, 1, options,
                                              simulator.nccl(), simulator.cuda());
    other->all_gather(parts[1].tensor, ones, {})->wait();
    synchronize(simulator.cuda(), stream.get());
    EXPECT_TRUE(parts[1].tensor.equal(ones));
  });
  expect_clean(simulator, errors);
}

// For the test below: what happens while a host wait is about to look at its event.
std::function<void()>& before_look() {
  static std::function<void()> hook;
  return hook;
}

TEST(NcclSimulated, WhatAnAbortLetRunOutIsNoResult) {
  Parts parts;
  Simulator simulator({.devices = 1});
  CudaApi cuda = simulator.cuda();
  cuda.set_device(0);
  cuda.about_to_wait = [](const char*, unsigned) {
    if (before_look()) std::exchange(before_look(), {})();
  };
  NcclOptions options;
  options.is_device_tensor = &testing::any_tensor;
  const auto communicator =
      make_nccl_communicator(make_nccl_id(simulator.nccl()), 0, 1, options, simulator.nccl(), cuda);
  communicator->all_reduce(parts.tensor, ReduceOp::sum)->wait();
  Event verdict(cuda);
  verdict.record(nullptr);
  before_look() = [&] {
    communicator->abort("too late");
    EXPECT_EQ(cuda.stream_synchronize(nullptr), cudaSuccess);
  };
  EXPECT_THROW(communicator->host_wait(verdict, "the verdict", Clock::now() + 1h), PeerLost);
}

TEST(NcclSimulated, AbortReachesGroupsSplitOff) {
  Simulator simulator({.devices = 2});
  const auto errors = run_on_devices(simulator, 2, {}, [&](const DeviceRank& rank) {
    const auto part = rank.communicator.split(0, 0);
    rank.communicator.abort("stop");
    part->barrier()->wait();
  });
  for (const std::string& error : errors) {
    EXPECT_TRUE(error == "stop" || error.find("remote process") != std::string::npos) << error;
  }
  EXPECT_THAT(simulator.failures(), IsEmpty());
}

// Works of the group and of a part of it, called in the order that `first_on_part` says per rank.
std::vector<std::string> errors_of_two_groups(std::uint64_t seed, std::vector<bool> first_on_part,
                                              std::chrono::milliseconds timeout) {
  Simulator simulator({.devices = 2, .seed = seed});
  simulator.run_one_nccl_kernel_at_a_time();
  NcclOptions options;
  options.timeout = timeout;
  const auto errors = run_on_devices(simulator, 2, options, [&](const DeviceRank& rank) {
    const auto part = rank.communicator.split(0, 0);
    const bool part_first = first_on_part[static_cast<std::size_t>(rank.rank())];
    Communicator& first = part_first ? *part : rank.communicator;
    Communicator& second = part_first ? rank.communicator : *part;
    for (int i = 0; i < 3; ++i) {
      auto on_first = first.barrier();
      auto on_second = second.barrier();
      on_first->wait();
      on_second->wait();
    }
  });
  EXPECT_THAT(simulator.failures(), IsEmpty());
  return errors;
}

TEST(NcclSimulated, TwoGroupsOnOneDeviceWantOneOrderOfLaunches) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (const std::string& error : errors_of_two_groups(seed, {true, true}, 60s)) {
      EXPECT_EQ(error, "") << "seed " << seed;
    }
    const auto errors = errors_of_two_groups(seed, {true, false}, 100ms);
    EXPECT_THAT(errors[0] + errors[1], HasSubstr("timed out")) << "seed " << seed;
  }
}

TEST(NcclSimulated, ADroppedWorkAbortsTheGroup) {
  std::vector<Parts> parts(2);
  Simulator simulator({.devices = 2});
  const auto errors = run_on_devices(simulator, 2, {}, [&](const DeviceRank& rank) {
    (void)rank.communicator.all_reduce(parts[static_cast<std::size_t>(rank.rank())].tensor,
                                       ReduceOp::sum);
    rank.communicator.barrier()->wait();
  });
  for (const std::string& error : errors) EXPECT_NE(error, "");
  EXPECT_THAT(simulator.failures(), IsEmpty());
}

TEST(NcclSimulated, AGroupThatCannotBeMadeSaysWhy) {
  Simulator simulator({.devices = 1});
  simulator.refuse_communicators(0, ncclUnhandledCudaError);
  const auto errors = run_on_devices(simulator, 1, {}, [](const DeviceRank&) {});
  EXPECT_THAT(errors[0], HasSubstr("joining the NCCL group failed on rank 0: NCCL says 'unhandled "
                                   "cuda error'"));
  EXPECT_THAT(simulator.failures(), IsEmpty());
  EXPECT_THAT(simulator.leaks(), IsEmpty());
}

TEST(NcclSimulated, AGroupThatNeverCompletesTimesOut) {
  Simulator simulator({.devices = 2});
  const CudaApi& cuda = simulator.cuda();
  cuda.set_device(0);
  NcclOptions options;
  options.timeout = 100ms;
  EXPECT_THROW((void)make_nccl_communicator(make_nccl_id(simulator.nccl()), 0, 2, options,
                                            simulator.nccl(), cuda),
               PeerLost);
  EXPECT_THAT(simulator.failures(), IsEmpty());
  EXPECT_THAT(simulator.leaks(), IsEmpty());
}

// Without a GPU the real tables give a sentence; with one, a group of one rank works.
TEST(RealNccl, FailsClearlyWithoutAGpu) {
  const CudaApi cuda = real_cuda_api();
  const NcclApi nccl = real_nccl_api();
  const std::string id = make_nccl_id(nccl);
  EXPECT_EQ(id.size(), sizeof(ncclUniqueId));
  int devices = 0;
  if (cuda.get_device_count(&devices) == cudaSuccess && devices > 0) {
    const auto communicator = make_nccl_communicator(id, 0, 1, {}, nccl, cuda);
    communicator->barrier()->wait();
    return;
  }
  try {
    (void)make_nccl_communicator(id, 0, 1, {}, nccl, cuda);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("cudaStreamCreate failed: "));
    EXPECT_THAT(error.what(), HasSubstr("nvidia-smi"));
  }
}

// The simulator's own word: what it must notice.

TEST(Simulator, MismatchedCollectivesAreReported) {
  const auto report = [](auto call) {
    std::vector<Parts> parts(2);
    Simulator simulator({.devices = 2});
    run_on_devices(simulator, 2, {}, [&](const DeviceRank& rank) {
      call(rank, parts[static_cast<std::size_t>(rank.rank())].tensor)->wait();
      Event end(simulator.cuda());
      end.record(rank.stream);
      rank.communicator.host_wait(end, "the end", Clock::now() + 1h);
    });
    const auto failures = simulator.failures();
    return failures.empty() ? "" : failures.front();
  };
  EXPECT_EQ(report([](const DeviceRank& rank, const at::Tensor& tensor) {
              return rank.communicator.all_reduce(tensor.narrow(0, 0, 2 + rank.rank()),
                                                  ReduceOp::sum);
            }),
            "rank 0 calls all_reduce of 2 elements of type 7, op 0, rank 1 calls all_reduce of 3 "
            "elements of type 7, op 0");
  EXPECT_EQ(report([](const DeviceRank& rank, const at::Tensor& tensor) {
              return rank.communicator.broadcast(tensor, rank.rank());
            }),
            "rank 0 calls broadcast of 4 elements of type 7, op 0, root 0, rank 1 calls broadcast "
            "of 4 elements of type 7, op 0, root 1");
  EXPECT_EQ(report([](const DeviceRank& rank, const at::Tensor& tensor) {
              const auto op = rank.rank() == 0 ? ReduceOp::sum : ReduceOp::max;
              return rank.communicator.all_reduce(tensor, op);
            }),
            "rank 0 calls all_reduce of 4 elements of type 7, op 0, rank 1 calls all_reduce of 4 "
            "elements of type 7, op 2");
}

TEST(Simulator, AWaitThatNothingCanEndIsADeadlock) {
  Simulator simulator({.devices = 1, .hang_limit = 50ms});
  const CudaApi& cuda = simulator.cuda();
  cuda.set_device(0);
  simulator.enqueue_kernel(nullptr, [] {});
  simulator.stall(0);
  EXPECT_THROW(synchronize(cuda, nullptr), Error);
  ASSERT_EQ(simulator.failures().size(), 1U);
  EXPECT_EQ(simulator.failures()[0],
            "deadlock: cudaStreamSynchronize waits, and nothing can run; device 0: a kernel "
            "(stalled)");
}

TEST(Simulator, OutputsAreGarbageUntilTheyHaveRun) {
  float source = 1;
  float target = 2;
  Simulator simulator({.devices = 1});
  const CudaApi& cuda = simulator.cuda();
  cuda.set_device(0);
  cuda.memcpy_async(&target, &source, sizeof target, cudaMemcpyDefault, nullptr);
  EXPECT_NE(target, target);
  synchronize(cuda, nullptr);
  EXPECT_EQ(target, 1.0f);
}

TEST(Simulator, OnlyRecordedEdgesOrderStreams) {
  int early = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    std::vector<int> order;
    Simulator simulator({.devices = 1, .seed = seed});
    const CudaApi& cuda = simulator.cuda();
    cuda.set_device(0);
    const Stream first(cuda);
    const Stream second(cuda);
    Event between(cuda);
    simulator.enqueue_kernel(first.get(), [&] { order.push_back(1); });
    between.record(first.get());
    if (seed >= 20) wait(cuda, second.get(), between);
    simulator.enqueue_kernel(second.get(), [&] { order.push_back(2); });
    synchronize(cuda, first.get());
    synchronize(cuda, second.get());
    ASSERT_EQ(order.size(), 2U);
    if (seed < 20) {
      early += order.front() == 2;
    } else {
      EXPECT_EQ(order.front(), 1);
    }
  }
  EXPECT_GT(early, 0);  // both orders are legal
  EXPECT_LT(early, 20);
}

TEST(Simulator, WhatIsNotFreedIsReported) {
  Simulator simulator({.devices = 1});
  const CudaApi& cuda = simulator.cuda();
  cuda.set_device(0);
  EXPECT_THAT(simulator.leaks(), IsEmpty());
  void* data = nullptr;
  cuda.malloc(&data, 16);
  const Stream stream(cuda);
  EXPECT_EQ(simulator.leaks(),
            (std::vector<std::string>{"a stream of device 0", "16 bytes of device memory"}));
  cuda.free(data);
  EXPECT_THAT(simulator.failures(), IsEmpty());
  cuda.free(data);
  EXPECT_EQ(simulator.failures(),
            std::vector<std::string>{"memory was freed that was not allocated (any more)"});
}

TEST(Simulator, AThreadWithoutADeviceIsReported) {
  Simulator simulator({.devices = 1});
  std::thread([&] { EXPECT_THROW(Stream{simulator.cuda()}, Error); }).join();
  EXPECT_EQ(simulator.failures(),
            std::vector<std::string>{"a thread that has set no device used one"});
}

TEST(Simulator, ACallWhileInProgressIsReported) {
  Simulator simulator({.devices = 2});
  simulator.cuda().set_device(0);
  ncclUniqueId id;
  simulator.nccl().get_unique_id(&id);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  // The second rank is missing, so this can only be in progress.
  EXPECT_EQ(simulator.nccl().comm_init_rank_config(&comm, 2, id, 0, &config), ncclInProgress);
  float value = 0;
  EXPECT_EQ(simulator.nccl().all_reduce(&value, &value, 1, ncclFloat32, ncclSum, comm, nullptr),
            ncclInvalidArgument);
  EXPECT_EQ(simulator.failures(),
            std::vector<std::string>{"ncclAllReduce while the communicator was in progress"});
}

}  // namespace
}  // namespace thinwire
