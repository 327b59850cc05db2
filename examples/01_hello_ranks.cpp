// Ranks: a program's copies that know who they are. Here four threads of one process.
//
//   build/examples/01_hello_ranks
//
// Last line: all 4 ranks met
#include <cstdio>

#include "collectives/threads/thread_communicator.h"

int main() {
  thinwire::run_ranks(4, [](std::unique_ptr<thinwire::Communicator> ranks) {
    std::printf("rank %d of %d says hello\n", ranks->rank(), ranks->size());
    ranks->barrier()->wait();
    if (ranks->rank() == 0) std::printf("all %d ranks met\n", ranks->size());
  });
}
