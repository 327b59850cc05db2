// The launches behind `cuda_low_rank_kernels`, as launch.h has those behind `cuda_kernels`.
#pragma once

#include "collectives/compression/kernels/low_rank.h"

namespace thinwire::launch {

template <typename T>
int orthonormal_left(const OrthonormalArgs<T>& args, StreamHandle stream);
template <typename T>
int orthonormal_right(const OrthonormalArgs<T>& args, StreamHandle stream);
template <typename T>
int project_left(const ProjectLeftArgs<T>& args, StreamHandle stream);
template <typename T>
int project_right(const ProjectRightArgs<T>& args, StreamHandle stream);
template <typename T>
int multiply(const LowRankProductArgs<T>& args, StreamHandle stream);
template <typename T>
int subtract(const LowRankProductArgs<T>& args, StreamHandle stream);

}  // namespace thinwire::launch
