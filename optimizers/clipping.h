// The norm of a whole gradient, and the factor that bounds it.
#pragma once

#include <span>
#include <vector>

#include "collectives/bucket.h"
#include "optimizers/device.h"

namespace thinwire {

// The squared L2 norm of the gradients (float or double, on the CPU) of all slices that do
// not rest, summed in double in one fixed order (that of `SquaredNormArgs` over a bucket's
// `norm_blocks`, then bucket by bucket), so that it is the same bits everywhere. Not finite if a
// gradient is not.
double squared_norm(std::span<const Bucket> buckets, const OptimizerDevice& device = {});

// The blocks whose squares make the norm of one bucket: its slices that do not rest, each cut
// from its own start.
std::vector<NormBlock> norm_blocks(const Bucket& bucket);

// torch::nn::utils::clip_grad_norm_'s factor, min(1, max_norm / (norm + 1e-6)): exactly 1 when
// there is nothing to clip, NaN for a NaN norm. `norm` is the norm, not its square.
double clip_scale(double norm, double max_norm);

}  // namespace thinwire
