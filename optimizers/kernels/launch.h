// The launches behind `cuda_optimizer_kernels`, which return CUDA's error code.
#pragma once

#include "optimizers/kernels/kernels.h"

namespace thinwire::launch {

template <typename Rule, typename T>
int step(const BucketView<T>& bucket, const typename Rule::Step& step, StreamHandle stream);
template <typename T>
int squared_norm(const SquaredNormArgs<T>& args, StreamHandle stream);

}  // namespace thinwire::launch
