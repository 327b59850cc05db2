// Numbers that an update needs of whole tensors: norms, largest values, means.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "collectives/bucket.h"

namespace thinwire {

enum class SliceReduction {
  squared_norm,  // the sum of squares
  largest,       // the largest magnitude
  mean,
};

// One number for each slice of the bucket, of its estimate in either form (values or coded): 0 for
// slices that rest or are empty. Formed in double, element by element from the slice's start, so
// the same bits on every rank. Not finite where a value is not. Host memory only.
std::vector<double> reduce_estimate(const Bucket& bucket, SliceReduction reduction);

// The same of a tensor with the layout of the bucket: an optimizer's state, or the weights.
std::vector<double> reduce_flat(const Bucket& bucket, const at::Tensor& flat,
                                SliceReduction reduction);

}  // namespace thinwire
