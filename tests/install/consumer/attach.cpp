#include <collectives/threads/thread_communicator.h>
#include <runtime/data_parallel.h>

#include <ATen/ops/zeros.h>

#include <cstdio>

int main() {
  thinwire::run_ranks(2, [](std::unique_ptr<thinwire::Communicator> ranks) {
    at::Tensor weight = at::zeros({8, 8}).set_requires_grad(true);
    thinwire::DataParallel parallel({{"weight", weight}}, *ranks, {thinwire::Sign{}});
    weight.sum().mul(1.0 + ranks->rank()).backward();
    parallel.finish();
    if (ranks->rank() == 0)
      std::printf("mean gradient %.2f\n", *weight.grad().const_data_ptr<float>());
  });
}
