// Gram and Schmidt's process through tensor operations: a second truth.
#pragma once

#include <ATen/core/Tensor.h>

namespace thinwire::reference {

// What Orthonormalizer does to several sets of vectors at once: `vectors` is sets x count x length
// in float64, filled up with zeros where sets differ in size. Dropped vectors become zero, or those
// of `fresh` (of the same shape; undefined: none) once these are freed of the earlier ones.
// Enqueues and does not wait. Equal input gives equal bits on devices of one model only.
at::Tensor orthonormal_batch(const at::Tensor& vectors, const at::Tensor& fresh, double tolerance,
                             double shortest);

}  // namespace thinwire::reference
