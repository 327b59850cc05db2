// PowerSGD's arithmetic through tensor operations: on devices, and as a second truth on the host.
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "collectives/compression/codec/typed.h"
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
template <typename Matrix, typename VectorsOf>
at::Tensor batch(const std::vector<Matrix>& matrices, const at::TensorOptions& options,
                 VectorsOf vectors_of) {
  std::vector<at::Tensor> sets;
  std::int64_t rank = 0;
  std::int64_t longest = 0;
  for (const Matrix& matrix : matrices) {
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
  const std::int64_t factors = here.factor_numel;
  if (here.matrices.empty()) return;
  // Draws for columns that are dropped, made on the host. What copied the last step's has run.
  if (!here.fresh.defined()) {
    here.fresh = at::zeros({factors}, bucket.gradient.options().dtype(at::kDouble));
    here.fresh_on_host =
        launch_.queue->host_memory(static_cast<std::size_t>(factors) * sizeof(double));
  }
  auto* drawn = static_cast<double*>(here.fresh_on_host.get());
  for (const Matrix& matrix : here.matrices) {
    const auto [rows, columns, rank] = matrix.shape;
    const auto redraw = draws(step, bucket.slices[matrix.slice].name, columns);
    for (std::int64_t k = 0; k < rank; ++k) redraw(k, drawn + matrix.factor + k * columns);
  }
  launch_.queue->copy(here.fresh.data_ptr(), drawn,
                      static_cast<std::size_t>(factors) * sizeof(double));
  const at::Tensor fresh = batch(here.matrices, here.message.options(), [&](const Matrix& matrix) {
    return view_of(here.fresh, matrix.factor, matrix.shape.rank, matrix.shape.columns);
  });
  at::Tensor start = fresh;
  if (power_.warm_start) {
    start = batch(here.matrices, here.message.options(), [&](const Matrix& matrix) {
      return view_of(here.factors, matrix.factor, matrix.shape.rank, matrix.shape.columns);
    });
  }
  const auto dtype = here.message.scalar_type();
  start = orthonormal_batch(start, fresh, tolerance(dtype), shortest(dtype)).to(dtype);
  for (std::size_t i = 0; i < here.matrices.size(); ++i) {
    const auto& [slice, shape, left, right, factor] = here.matrices[i];
    const std::int64_t offset = bucket.slices[slice].offset;
    at::Tensor m = view_of(bucket.gradient, offset, shape.rows, shape.columns);
    if (feedback_) m.add_(view_of(here.residual, offset, shape.rows, shape.columns));
    const at::Tensor q = start.select(0, static_cast<std::int64_t>(i))
                             .narrow(0, 0, shape.rank)
                             .narrow(1, 0, shape.columns);
    view_of(here.message, left, shape.rows, shape.rank).copy_(at::mm(m, q.t()));
  }
}

void PowerSgdReducer::tensors_right(Path& here) {
  if (here.matrices.empty()) return;
  const auto left_of = [&](const Matrix& matrix) {
    return view_of(here.message, matrix.left, matrix.shape.rows, matrix.shape.rank);
  };
  const at::Tensor sets = orthonormal_batch(
      batch(here.matrices, here.message.options(),
            [&](const Matrix& matrix) { return left_of(matrix).t(); }),
      {}, tolerance(here.message.scalar_type()), shortest(here.message.scalar_type()));
  for (std::size_t i = 0; i < here.matrices.size(); ++i) {
    const Matrix& matrix = here.matrices[i];
    const auto [rows, columns, rank] = matrix.shape;
    at::Tensor p = left_of(matrix);
    p.copy_(sets.select(0, static_cast<std::int64_t>(i)).narrow(0, 0, rank).narrow(1, 0, rows).t());
    const at::Tensor m =
        view_of(here.bucket->gradient, here.bucket->slices[matrix.slice].offset, rows, columns);
    view_of(here.own_right, matrix.right, rank, columns).copy_(at::mm(p.t(), m));
  }
}

void PowerSgdReducer::tensors_back(Bucket& bucket, Path& here) {
  const at::Tensor& estimate = feedback_ ? here.residual : bucket.gradient;
  for (const auto& [slice, shape, left, right, factor] : here.matrices) {
    const std::int64_t offset = bucket.slices[slice].offset;
    const at::Tensor p = view_of(here.message, left, shape.rows, shape.rank);
    const at::Tensor q = view_of(here.right, right, shape.rank, shape.columns);
    if (feedback_) {
      view_of(bucket.gradient, offset, shape.rows, shape.columns)
          .sub_(at::mm(p, view_of(here.own_right, right, shape.rank, shape.columns)));
    }
    view_of(estimate, offset, shape.rows, shape.columns).copy_(at::mm(p, q));
  }
}

}  // namespace thinwire
