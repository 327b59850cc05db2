#include "tests/reference/orthonormal_batch.h"

#include <ATen/ops/bmm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

namespace thinwire::reference {
namespace {

struct Freed {
  at::Tensor vector;  // sets x 1 x length: of length 1, or zero
  at::Tensor kept;    // sets x 1 x 1: whether it is not zero
};

at::Tensor length_of(const at::Tensor& vector) {
  return at::linalg_vector_norm(vector, 2, {2}, /*keepdim=*/true);
}

Freed free_of(const at::Tensor& earlier, at::Tensor vector, double tolerance, double shortest) {
  const at::Tensor before = length_of(vector);
  for (int pass = 0; pass < 2; ++pass) {
    vector = vector.sub(at::bmm(at::bmm(vector, earlier.transpose(1, 2)), earlier));
  }
  const at::Tensor after = length_of(vector);
  const at::Tensor kept = before.ge(shortest).logical_and(after.gt(before.mul(tolerance)));
  return {at::where(kept, vector.div(after), at::zeros_like(vector)), kept};
}

}  // namespace

at::Tensor orthonormal_batch(const at::Tensor& vectors, const at::Tensor& fresh, double tolerance,
                             double shortest) {
  at::Tensor done = at::zeros_like(vectors);
  for (std::int64_t k = 0; k < vectors.size(1); ++k) {
    const at::Tensor earlier = done.narrow(1, 0, k);
    Freed freed = free_of(earlier, vectors.narrow(1, k, 1), tolerance, shortest);
    if (fresh.defined()) {
      const Freed other = free_of(earlier, fresh.narrow(1, k, 1), tolerance, shortest);
      freed.vector = at::where(freed.kept, freed.vector, other.vector);
    }
    done.narrow(1, k, 1).copy_(freed.vector);
  }
  return done;
}

}  // namespace thinwire::reference
