// The norm of a whole gradient, and the factor that bounds it.
#pragma once

#include <span>
#include <vector>

#include "collectives/bucket.h"
#include "optimizers/device.h"

namespace thinwire {

// The squared L2 norm of the gradients (float or double, in the device's memory) of all slices that
// do not rest. It is summed in double in one fixed order, that of `SquaredNormArgs` over a bucket's
// `norm_blocks` and then bucket by bucket, so that it has the same bits everywhere. It is not
// finite if a gradient is not.
double squared_norm(std::span<const Bucket> buckets, const OptimizerDevice& device = {});

// The blocks of which the norm of one bucket is made: its slices that do not rest, each cut into
// blocks from its own start.
std::vector<NormBlock> norm_blocks(const Bucket& bucket);

// torch::nn::utils::clip_grad_norm_'s factor, min(1, max_norm / (norm + 1e-6)): exactly 1 when
// there is nothing to clip, NaN for a NaN norm. `norm` is the norm, not its square.
double clip_scale(double norm, double max_norm);

}  // namespace thinwire
