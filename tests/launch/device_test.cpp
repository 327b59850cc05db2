#include "launch/device.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"

namespace thinwire {
namespace {

using Launcher = JobEnvironment::Launcher;

JobEnvironment process(int local_rank, int local_size) {
  JobEnvironment environment;
  environment.launcher = Launcher::mpirun;
  environment.local_rank = local_rank;
  environment.local_size = local_size;
  // Behind a host of one rank more: the rank is no index.
  environment.rank = local_size + 1 + local_rank;
  environment.world_size = 2 * local_size + 1;
  return environment;
}

constexpr VisibleDevices kNone{0, false};
constexpr VisibleDevices kOne{1, false};
constexpr VisibleDevices kFour{4, false};
constexpr VisibleDevices kOneChosen{1, true};
constexpr VisibleDevices kTwoChosen{2, true};
constexpr VisibleDevices kAllHidden{0, true};

TEST(Device, Table) {
  struct Case {
    const char* word;
    JobEnvironment environment;
    VisibleDevices visible;
    SharePolicy policy;
    std::string device;
  };
  const auto refuse = SharePolicy::refuse;
  const auto share = SharePolicy::share;
  const std::vector<Case> table{
      {"cpu", process(0, 1), kFour, refuse, "cpu"},
      {"cpu", process(7, 8), kOne, refuse, "cpu"},
      {"auto", process(7, 8), kNone, refuse, "cpu"},
      {"auto", process(0, 1), kAllHidden, refuse, "cpu"},
      {"auto", process(2, 4), kFour, refuse, "cuda:2"},
      {"cuda", {}, kOne, refuse, "cuda:0"},
      {"cuda", process(0, 4), kFour, refuse, "cuda:0"},
      {"cuda", process(3, 4), kFour, refuse, "cuda:3"},
      {"cuda", process(1, 2), kTwoChosen, refuse, "cuda:1"},
      // Each process has its own only device.
      {"cuda", process(3, 4), kOneChosen, refuse, "cuda:0"},
      {"cuda", process(3, 4), kOneChosen, share, "cuda:0"},
      {"cuda", process(3, 8), kFour, share, "cuda:3"},
      {"cuda", process(5, 8), kFour, share, "cuda:1"},
      {"cuda", process(1, 2), kOne, share, "cuda:0"},
      // Ranks that are threads.
      {"cuda", thread_rank(3, 4), kFour, refuse, "cuda:3"},
      {"cuda", thread_rank(3, 4), kTwoChosen, share, "cuda:1"},
      {"cuda", thread_rank(1, 2), kOneChosen, share, "cuda:0"},
  };
  for (const auto& expected : table) {
    EXPECT_EQ(
        name(choose_device(expected.word, expected.environment, expected.visible, expected.policy)),
        expected.device)
        << expected.word << ", " << expected.environment.local_rank << " of "
        << expected.environment.local_size << " on " << expected.visible.count;
  }
}

TEST(Device, Refusals) {
  struct Case {
    const char* word;
    JobEnvironment environment;
    VisibleDevices visible;
    std::string message;
  };
  const std::string share = "; start fewer, or let them share with --share-device";
  const std::vector<Case> table{
      {"gpu", {}, kFour, "--device is 'gpu'; give auto, cpu or cuda"},
      {"cuda",
       {},
       kNone,
       "--device cuda, but no CUDA device is visible to this program; use --device cpu"},
      {"cuda",
       {},
       kAllHidden,
       "--device cuda, but no CUDA device is visible: CUDA_VISIBLE_DEVICES hides them; use "
       "--device cpu"},
      // All ranks see it, also those that would have a device.
      {"cuda", process(0, 5), kFour, "5 ranks on this host, but 4 CUDA devices" + share},
      {"auto", process(0, 2), kOne, "2 ranks on this host, but 1 CUDA device" + share},
      {"cuda", process(0, 4), kTwoChosen, "4 ranks on this host, but 2 CUDA devices" + share},
      {"cuda", thread_rank(0, 2), kOneChosen, "2 ranks on this host, but 1 CUDA device" + share},
  };
  for (const auto& expected : table) {
    try {
      choose_device(expected.word, expected.environment, expected.visible, SharePolicy::refuse);
      ADD_FAILURE() << "accepted; expected: " << expected.message;
    } catch (const UsageError& error) {
      EXPECT_EQ(error.what(), expected.message);
    }
  }
}

// What each rank of a group is told.
std::vector<std::string> told(const std::vector<std::string>& identities) {
  std::vector<std::string> messages(identities.size());
  run_ranks(static_cast<int>(identities.size()), [&](std::unique_ptr<Communicator> communicator) {
    const auto rank = static_cast<std::size_t>(communicator->rank());
    try {
      require_own_devices(*communicator, identities[rank]);
    } catch (const AgreedError& error) {
      messages[rank] = error.what();
    }
  });
  return messages;
}

TEST(Device, CpusAndDevicesDoNotMix) {
  run_ranks(2, [](std::unique_ptr<Communicator> communicator) {
    require_same_kind(*communicator, {});
    const auto kind = communicator->rank() == 1 ? Device::Kind::cuda : Device::Kind::cpu;
    EXPECT_THROW(require_same_kind(*communicator, {kind, 0}), AgreedError);
  });
}

TEST(Device, TwoRanksOnOneAreFoundByAll) {
  const std::vector<std::string> silence(3);
  EXPECT_EQ(told({"a/1", "a/2", "b/1"}), silence);
  EXPECT_EQ(told({"", "", ""}), silence);
  const auto messages = told({"a/1", "b/7", "b/7"});
  EXPECT_EQ(messages[0],
            "ranks 1 and 2 compute on the same device, b/7; start fewer ranks, give each its own "
            "CUDA_VISIBLE_DEVICES, or let them share with --share-device");
  EXPECT_EQ(messages, std::vector<std::string>(3, messages[0]));
}

}  // namespace
}  // namespace thinwire
