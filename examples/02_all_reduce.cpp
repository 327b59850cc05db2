// All-reduce: every rank gives a tensor, every rank gets the sum. The call returns at once; `wait`
// returns when the result is there.
//
//   build/examples/02_all_reduce
//
// Last line: 0 + 1 + 2 + 3 = 6, 1500000 bytes sent by each rank
#include <ATen/ATen.h>

#include <cstdio>

#include "collectives/threads/thread_communicator.h"

int main() {
  thinwire::run_ranks(4, [](std::unique_ptr<thinwire::Communicator> ranks) {
    at::Tensor tensor = at::full({250000}, static_cast<float>(ranks->rank()));
    const auto work = ranks->all_reduce(tensor, thinwire::ReduceOp::sum);
    // ... other work ...
    work->wait();
    if (ranks->rank() == 0) {
      std::printf("0 + 1 + 2 + 3 = %.0f, %lld bytes sent by each rank\n", tensor[0].item<float>(),
                  static_cast<long long>(work->bytes_sent()));
    }
  });
}
