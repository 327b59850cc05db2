#include "collectives/compression/kernels/launch.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "collectives/base/error.h"

namespace thinwire {

void launch::check_launched(int code) {
  if (code == cudaSuccess) return;
  throw Error(ExitCode::internal,
              fmt::format("a kernel could not be started: {}; see that the driver and the GPU are "
                          "ones that this build was made for",
                          cudaGetErrorString(static_cast<cudaError_t>(code))));
}

}  // namespace thinwire
