// One header, one target.
#include <thinwire/thinwire.h>

#include <ATen/ops/zeros.h>

#include <cstdio>

int main(int argc, char** argv) {
#ifdef THINWIRE_WITH_MPI
  std::printf("compiled with MPI\n");
#endif
  return thinwire::launch(argc, argv, [](std::unique_ptr<thinwire::Communicator> ranks) {
    at::Tensor weight = at::zeros({8, 8}).set_requires_grad(true);
    thinwire::DataParallel parallel({{"weight", weight}}, *ranks, {thinwire::Sign{}});
    weight.sum().mul(1.0 + ranks->rank()).backward();
    parallel.finish();
    if (ranks->rank() != 0) return;
    std::printf("mean gradient %.2f of %d ranks\n", *weight.grad().const_data_ptr<float>(),
                ranks->size());
  });
}
