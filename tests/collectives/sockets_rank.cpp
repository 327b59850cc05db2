// One rank of a sockets job as a process, for tests that kill and stop it: sums for ever, and says
// why it ended. sockets_rank RANK SIZE STORE_PORT TIMEOUT_MS
#include <ATen/ops/ones.h>

#include <cstdio>
#include <cstdlib>

#include "collectives/sockets/socket_communicator.h"
#include "runtime/base/error.h"

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  thinwire::SocketOptions options;
  options.rank = std::atoi(argv[1]);
  options.size = std::atoi(argv[2]);
  options.store_port = std::atoi(argv[3]);
  options.store = thinwire::StoreHost::launcher;
  options.timeout = std::chrono::milliseconds(std::atoi(argv[4]));
  try {
    const auto communicator = thinwire::make_socket_communicator(options);
    for (int step = 0;; ++step) {
      at::Tensor tensor = at::ones({300000});
      communicator->all_reduce(tensor, thinwire::ReduceOp::sum)->wait();
      if (step == 2) std::puts("ready");
      std::fflush(stdout);
    }
  } catch (const thinwire::Error& error) {
    std::puts(error.what());
    std::fflush(stdout);
    return static_cast<int>(error.code());
  }
}
