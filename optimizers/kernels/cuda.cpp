#include "collectives/compression/kernels/launch.h"
#include "optimizers/kernels/kernels.h"
#include "optimizers/kernels/launch.h"

namespace thinwire {

template <typename T>
OptimizerKernels<T> cuda_optimizer_kernels() {
  return {launch::checked<launch::sgd<T>, SgdArgs<T>>,
          launch::checked<launch::adam<T>, AdamArgs<T>>,
          launch::checked<launch::squared_norm<T>, SquaredNormArgs<T>>};
}

template OptimizerKernels<float> cuda_optimizer_kernels<float>();
template OptimizerKernels<double> cuda_optimizer_kernels<double>();

}  // namespace thinwire
