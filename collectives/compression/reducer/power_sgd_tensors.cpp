// PowerSGD's arithmetic through tensor operations: a second truth for the kernels.
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "collectives/base/philox.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/kernels/orthonormal.h"
#include "collectives/compression/reducer/orthonormal_batch.h"
#include "collectives/compression/reducer/power_sgd.h"

namespace thinwire {
namespace {

// rows x columns of a flat tensor from `begin` on.
at::Tensor view_of(const at::Tensor& flat, std::int64_t begin, std::int64_t rows,
                   std::int64_t columns) {
  return flat.narrow(0, begin, rows * columns).view({rows, columns});
}

// Sets of vectors, filled up with zeros where they differ in size. `vectors_of(matrix)` is rank x
// length.
template <typename VectorsOf>
at::Tensor batch(const std::vector<LowRankMatrix>& matrices, const at::TensorOptions& options,
                 VectorsOf vectors_of) {
  std::vector<at::Tensor> sets;
  std::int64_t rank = 0;
  std::int64_t longest = 0;
  for (const LowRankMatrix& matrix : matrices) {
    sets.push_back(vectors_of(matrix));
    rank = std::max(rank, sets.back().size(0));
    longest = std::max(longest, sets.back().size(1));
  }
  at::Tensor all = at::zeros({static_cast<std::int64_t>(sets.size()), rank, longest},
                             options.dtype(at::kDouble));
  for (std::size_t i = 0; i < sets.size(); ++i) {
    all.select(0, static_cast<std::int64_t>(i))
        .narrow(0, 0, sets[i].size(0))
        .narrow(1, 0, sets[i].size(1))
        .copy_(sets[i]);
  }
  return all;
}

double shortest(at::ScalarType dtype) {
  return with_type(dtype, []<typename T>(T) { return shortest_vector<T>; });
}

}  // namespace

void PowerSgdReducer::tensors_left(Bucket& bucket, Path& here, const StepContext& step) {
  if (here.matrices.empty()) return;
  const std::uint64_t key = Philox(step.seed, PhiloxStream::low_rank, 0).key();
  const at::Tensor fresh =
      batch(here.matrices, here.message.options(), [&](const LowRankMatrix& m) {
        const auto [rows, columns, rank] = m.shape;
        at::Tensor drawn = at::empty({rank, columns}, at::kDouble);
        auto* to = drawn.data_ptr<double>();
        for (std::int64_t k = 0; k < rank; ++k) {
          for (std::int64_t i = 0; i < columns; ++i) {
            *to++ =
                low_rank_draw(key, m.fresh, static_cast<std::uint64_t>(step.step), columns, k, i);
          }
        }
        return drawn;
      });
  at::Tensor start = fresh;
  if (power_.warm_start) {
    start = batch(here.matrices, here.message.options(), [&](const LowRankMatrix& matrix) {
      return view_of(here.factors, matrix.factor, matrix.shape.rank, matrix.shape.columns);
    });
  }
  const auto dtype = here.message.scalar_type();
  start = orthonormal_batch(start, fresh, tolerance(dtype), shortest(dtype)).to(dtype);
  for (std::size_t i = 0; i < here.matrices.size(); ++i) {
    const LowRankMatrix& matrix = here.matrices[i];
    const LowRankShape& shape = matrix.shape;
    at::Tensor m = view_of(bucket.gradient, matrix.matrix, shape.rows, shape.columns);
    if (feedback_) m.add_(view_of(here.residual, matrix.matrix, shape.rows, shape.columns));
    const at::Tensor q = start.select(0, static_cast<std::int64_t>(i))
                             .narrow(0, 0, shape.rank)
                             .narrow(1, 0, shape.columns);
    view_of(here.message, matrix.left, shape.rows, shape.rank).copy_(at::mm(m, q.t()));
  }
}

void PowerSgdReducer::tensors_right(Path& here) {
  if (here.matrices.empty()) return;
  const auto left_of = [&](const LowRankMatrix& matrix) {
    return view_of(here.message, matrix.left, matrix.shape.rows, matrix.shape.rank);
  };
  const at::Tensor sets = orthonormal_batch(
      batch(here.matrices, here.message.options(),
            [&](const LowRankMatrix& matrix) { return left_of(matrix).t(); }),
      {}, tolerance(here.message.scalar_type()), shortest(here.message.scalar_type()));
  for (std::size_t i = 0; i < here.matrices.size(); ++i) {
    const LowRankMatrix& matrix = here.matrices[i];
    const auto [rows, columns, rank] = matrix.shape;
    at::Tensor p = left_of(matrix);
    p.copy_(sets.select(0, static_cast<std::int64_t>(i)).narrow(0, 0, rank).narrow(1, 0, rows).t());
    const at::Tensor m = view_of(here.bucket->gradient, matrix.matrix, rows, columns);
    view_of(here.own_right, matrix.right, rank, columns).copy_(at::mm(p.t(), m));
  }
}

void PowerSgdReducer::tensors_back(Bucket& bucket, Path& here) {
  const at::Tensor& estimate = feedback_ ? here.residual : bucket.gradient;
  for (std::size_t i = 0; i < here.matrices.size(); ++i) {
    if (bucket.slices[here.matrix_slices[i]].absent) continue;
    const LowRankMatrix& matrix = here.matrices[i];
    const auto [rows, columns, rank] = matrix.shape;
    const at::Tensor p = view_of(here.message, matrix.left, rows, rank);
    const at::Tensor q = view_of(here.right, matrix.right, rank, columns);
    if (feedback_) {
      view_of(bucket.gradient, matrix.matrix, rows, columns)
          .sub_(at::mm(p, view_of(here.own_right, matrix.right, rank, columns)));
    }
    view_of(estimate, matrix.matrix, rows, columns).copy_(at::mm(p, q));
  }
}

}  // namespace thinwire
