// How long the plain sum takes over the sockets backend: sockets_bench RANK SIZE STORE_HOST
// STORE_PORT ELEMENTS REPEATS CHUNK_BYTES. Rank 0 prints the seconds of each repeat.
#include <ATen/ops/ones.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#include "collectives/sockets/socket_communicator.h"

int main(int argc, char** argv) {
  if (argc != 8) return 2;
  thinwire::SocketOptions options;
  options.rank = std::atoi(argv[1]);
  options.size = std::atoi(argv[2]);
  options.store_host = argv[3];
  options.store_port = std::atoi(argv[4]);
  options.chunk_bytes = std::atoll(argv[7]);
  const auto communicator = thinwire::make_socket_communicator(options);
  at::Tensor tensor = at::ones({std::atoll(argv[5])});
  for (int repeat = 0; repeat < std::atoi(argv[6]); ++repeat) {
    communicator->barrier()->wait();
    const auto start = thinwire::Clock::now();
    communicator->all_reduce(tensor, thinwire::ReduceOp::sum)->wait();
    const std::chrono::duration<double> seconds = thinwire::Clock::now() - start;
    if (communicator->rank() == 0) fmt::print("{:.4f}\n", seconds.count());
  }
  communicator->barrier()->wait();
}
