#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "collectives/compression/kernels/launch.h"
#include "runtime/base/error.h"

namespace thinwire {

void launch::check_launched(int code) {
  if (code == cudaSuccess) return;
  throw Error(ExitCode::internal,
              fmt::format("a kernel could not be started: {}; see that the driver and the GPU are "
                          "ones that this build was made for",
                          cudaGetErrorString(static_cast<cudaError_t>(code))));
}

template <typename T>
Kernels<T> cuda_kernels() {
  return {launch::checked<launch::encode<T>, EncodeArgs<T>>,
          launch::checked<launch::owner_reduce<T>, OwnerReduceArgs<T>>,
          launch::checked<launch::first_non_finite<T>, FirstNonFiniteArgs<T>>,
          launch::checked<launch::decode<T>, DecodeArgs<T>>,
          launch::checked<launch::integrate<T>, DecodeArgs<T>>,
          launch::checked<launch::mean_and_check<T>, MeanAndCheckArgs<T>>};
}

template Kernels<float> cuda_kernels<float>();
template Kernels<double> cuda_kernels<double>();

}  // namespace thinwire
