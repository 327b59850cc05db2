// launch/gpu.h where thinwire is built without CUDA.
#include "collectives/base/error.h"
#include "launch/gpu.h"

namespace thinwire {

int cuda_device_count() {
  return 0;
}

std::unique_ptr<GpuRank> make_gpu_rank(const Device&, SharePolicy, Communicator&,
                                       std::shared_ptr<Meter>, std::function<std::string()>) {
  throw Bug("bug: a device was chosen, but CUDA is not built in");
}

}  // namespace thinwire
