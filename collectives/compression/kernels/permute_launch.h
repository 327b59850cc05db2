// The launches of permute_device.cu, by code of CUDA's.
#pragma once

#include "collectives/compression/kernels/permute.h"

namespace thinwire::launch {

template <typename T>
int apply_order(const PermuteArgs<T>& args, StreamHandle stream);
template <typename T>
int revert_order(const PermuteArgs<T>& args, StreamHandle stream);

}  // namespace thinwire::launch
