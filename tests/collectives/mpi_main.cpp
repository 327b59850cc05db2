// The conformance suite over MPI: run under mpirun, every rank runs every test.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/mpi/mpi_communicator.h"
#include "tests/conformance/groups.h"
#include "tests/support/hang_watchdog.h"

namespace thinwire {
namespace {

using namespace std::chrono_literals;

class MpiConformance : public ::testing::TestWithParam<testing::ConformanceTest> {};

TEST_P(MpiConformance, Holds) {
  const auto communicator = make_mpi_communicator(MPI_COMM_WORLD);
  GetParam().run(*communicator);
}

TEST_P(MpiConformance, HoldsInTinyMessages) {
  // Every message of more than 64 bytes goes in pieces, as messages beyond 2^31 do.
  const auto communicator = make_mpi_communicator(MPI_COMM_WORLD, {60s, 64});
  GetParam().run(*communicator);
}

class MpiGroups : public ::testing::TestWithParam<testing::ConformanceTest> {};

TEST_P(MpiGroups, Holds) {
  const auto communicator = make_mpi_communicator(MPI_COMM_WORLD);
  GetParam().run(*communicator);
}

INSTANTIATE_TEST_SUITE_P(Mpi, MpiGroups, ::testing::ValuesIn(testing::kGroupTests),
                         [](const auto& test) { return std::string(test.param.name); });
INSTANTIATE_TEST_SUITE_P(Mpi, MpiConformance, ::testing::ValuesIn(testing::kConformanceTests),
                         [](const auto& test) { return std::string(test.param.name); });

// They go round the ring in pieces of the usual size, and several groups of them.
TEST(Mpi, LargeSumsInFlightBesideSmallOnes) {
  const auto communicator = make_mpi_communicator(MPI_COMM_WORLD);
  const int size = communicator->size();
  const auto terms = [](std::int64_t count, double factor, double more) {
    return at::arange(count).remainder(1000).mul(factor).add(more).to(at::kFloat);
  };
  const std::vector<std::int64_t> counts{100, 10'000'000, 101, 700'001, 102};
  std::vector<at::Tensor> tensors;
  std::vector<std::unique_ptr<Work>> works;
  for (const std::int64_t count : counts) {
    tensors.push_back(terms(count, 1, communicator->rank()));
    works.push_back(communicator->all_reduce(tensors.back(), ReduceOp::sum));
  }
  for (std::size_t i = 0; i < counts.size(); ++i) {
    works[i]->wait();
    EXPECT_TRUE(tensors[i].equal(terms(counts[i], size, size * (size - 1) / 2)));
  }
}

// From here on the world is poisoned bit by bit: each test uses a duplicate of its own.
TEST(Mpi, ADeadlineEndsAWaitOnEveryRank) {
  const auto communicator = make_mpi_communicator(MPI_COMM_WORLD, {200ms, 1 << 30});
  if (communicator->size() == 1) GTEST_SKIP() << "one rank waits for nobody";
  at::Tensor tensor = at::zeros({1000});
  // The last rank comes too late. All that it needs for the sum may have been sent; at the latest
  // behind it it hears of the failure.
  if (communicator->rank() == communicator->size() - 1) {
    std::this_thread::sleep_for(1s);
    try {
      communicator->all_reduce(tensor, ReduceOp::sum)->wait();
      communicator->barrier()->wait();
      ADD_FAILURE() << "the barrier ended";
    } catch (const PeerLost& error) {
      EXPECT_NE(std::string(error.what()).find("timed out"), std::string::npos) << error.what();
    }
    return;
  }
  EXPECT_THROW(communicator->all_reduce(tensor, ReduceOp::sum)->wait(), PeerLost);
  EXPECT_THROW(communicator->barrier(), PeerLost);
}

TEST(Mpi, AbortReachesPeersInTheirWait) {
  const auto communicator = make_mpi_communicator(MPI_COMM_WORLD);
  if (communicator->size() == 1) GTEST_SKIP() << "one rank waits for nobody";
  if (communicator->rank() == 0) {
    communicator->abort("rank 0 gave up");
    return;
  }
  try {
    communicator->barrier()->wait();
    ADD_FAILURE() << "the barrier ended";
  } catch (const PeerLost& error) {
    EXPECT_STREQ(error.what(), "rank 0 gave up");
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  int failed = 0;
  {
    thinwire::MpiEnvironment environment;
    ::testing::InitGoogleTest(&argc, argv);
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    listeners.Append(new thinwire::testing::HangWatchdog(std::chrono::seconds(120)));
    failed = RUN_ALL_TESTS();
    if (failed != 0) thinwire::MpiEnvironment::abort_job(1);
  }
  return failed;
}
