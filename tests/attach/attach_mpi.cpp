// The suite over MPI: run under mpirun, every rank runs every test.
#include <gtest/gtest.h>

#include "collectives/mpi/mpi_communicator.h"
#include "tests/attach/suite.h"
#include "tests/support/hang_watchdog.h"

namespace thinwire {
namespace {

class Attach : public ::testing::TestWithParam<testing::AttachTest> {};

TEST_P(Attach, OverMpi) {
  const auto communicator = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = GetParam().timeout});
  GetParam().run(*communicator);
}

INSTANTIATE_TEST_SUITE_P(Loops, Attach, ::testing::ValuesIn(testing::attach_tests()),
                         [](const auto& test) { return std::string(test.param.name); });

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
