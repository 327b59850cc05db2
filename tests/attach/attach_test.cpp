// The suite over threads and over sockets.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "collectives/sockets/rendezvous.h"
#include "collectives/sockets/socket_communicator.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/attach/suite.h"
#include "tests/support/notebook.h"

namespace thinwire {
namespace {

using testing::AttachTest;
using testing::Notebook;

class Attach : public ::testing::TestWithParam<std::tuple<AttachTest, int>> {};

TEST_P(Attach, OverThreads) {
  const auto& [test, size] = GetParam();
  run_ranks(size, [&, &run = test.run](auto communicator) { run(*communicator); },
            {.timeout = test.timeout, .link = {}});
}

TEST_P(Attach, OverSockets) {
  const auto& [test, size] = GetParam();
  Notebook notebook;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank, ranks = size, &run = test.run, timeout = test.timeout] {
      try {
        SocketOptions options;
        options.rank = rank;
        options.size = ranks;
        options.timeout = timeout;
        run(*make_socket_communicator(options, notebook));
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(Loops, Attach,
                         ::testing::Combine(::testing::ValuesIn(testing::attach_tests()),
                                            ::testing::Values(2, 3)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "_by_" +
                                  std::to_string(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace thinwire
