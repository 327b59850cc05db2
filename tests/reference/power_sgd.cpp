#include "tests/reference/power_sgd.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/philox.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/kernels/orthonormal.h"
#include "tests/reference/codec.h"
#include "tests/reference/exchange.h"
#include "tests/reference/orthonormal_batch.h"

namespace thinwire::reference {
namespace {

at::Tensor values_of(const Bucket& bucket, std::size_t slice) {
  const Slice& place = bucket.slices[slice];
  return bucket.gradient.narrow(0, place.offset, place.numel);
}

double shortest(at::ScalarType dtype) {
  return with_type(dtype, []<typename T>(T) { return shortest_vector<T>; });
}

// The sum over ranks of several tensors in one message.
void sum_in_one_message(const std::vector<at::Tensor>& parts, Communicator& communicator) {
  std::vector<at::Tensor> flat;
  for (const at::Tensor& part : parts) flat.push_back(part.reshape({-1}));
  if (flat.empty()) return;
  const at::Tensor message = at::cat(flat);
  if (message.numel() == 0) return;
  communicator.all_reduce(message, ReduceOp::sum)->wait();
  std::int64_t from = 0;
  for (const at::Tensor& part : parts) {
    part.copy_(message.narrow(0, from, part.numel()).view(part.sizes()));
    from += part.numel();
  }
}

// One set of vectors, the rows of a matrix.
at::Tensor orthonormal(const at::Tensor& rows, const at::Tensor& fresh, double tolerance,
                       double shortest) {
  const auto set = [](const at::Tensor& x) {
    return x.defined() ? x.to(at::kDouble).unsqueeze(0) : x;
  };
  return orthonormal_batch(set(rows), set(fresh), tolerance, shortest)
      .squeeze(0)
      .to(rows.scalar_type());
}

}  // namespace

PowerSgdByTensors::PowerSgdByTensors(const CompressionOptions& options)
    : power_(std::get<PowerSgd>(options.codec)),
      policy_(options.policy),
      feedback_(options.feedback.kind == FeedbackKind::error_feedback) {}

LowRankShape PowerSgdByTensors::shape_of(const Slice& slice) const {
  if (slice.is_vector() || slice.numel == 0 || reason_for_dense(slice, policy_)) return {};
  const std::int64_t rows = slice.shape.front();
  const std::int64_t columns = slice.numel / rows;
  const std::int64_t rank = std::min({rows, columns, power_.matrix_approximation_rank});
  const double factors = static_cast<double>((rows + columns) * rank);
  const bool pays = factors * power_.min_compression_rate < static_cast<double>(slice.numel);
  return {rows, columns, pays ? rank : 0};
}

double PowerSgdByTensors::tolerance(at::ScalarType dtype) const {
  return with_type(dtype, [&]<typename T>(T) {
    return std::max<double>(power_.orthogonalization_epsilon,
                            16 * std::numeric_limits<T>::epsilon());
  });
}

void PowerSgdByTensors::prepare(const Bucket& bucket, int, int) {
  State here;
  const auto options = bucket.gradient.options();
  for (const Slice& slice : bucket.slices) {
    const LowRankShape shape = shape_of(slice);
    here.residuals.push_back(at::zeros({shape.rows, shape.columns}, options));
    here.factors.push_back(at::zeros({shape.rank, shape.columns}, options));
  }
  states_.insert_or_assign(bucket.index, std::move(here));
}

// Each matrix's Q^T that the step begins with.
std::vector<at::Tensor> PowerSgdByTensors::starts(const Bucket& bucket, const State& here,
                                                  const StepContext& step) const {
  const auto dtype = bucket.gradient.scalar_type();
  const std::uint64_t key = Philox(step.seed, PhiloxStream::low_rank, 0).key();
  std::vector<at::Tensor> all;
  for (const Matrix& matrix : here.matrices) {
    const auto [rows, columns, rank] = matrix.shape;
    const std::uint64_t fresh_of = hash64(bucket.slices[matrix.slice].name);
    const at::Tensor fresh = at::empty({rank, columns}, at::kDouble);
    auto* to = fresh.data_ptr<double>();
    for (std::int64_t k = 0; k < rank; ++k) {
      for (std::int64_t i = 0; i < columns; ++i) {
        *to++ = low_rank_draw(key, fresh_of, static_cast<std::uint64_t>(step.step), columns, k, i);
      }
    }
    const at::Tensor start = power_.warm_start ? here.factors[matrix.slice] : fresh;
    all.push_back(orthonormal(start, fresh, tolerance(dtype), shortest(dtype)).to(dtype));
  }
  return all;
}

void PowerSgdByTensors::stage_dense(Bucket& bucket, State& here, Communicator& communicator) {
  const auto exchange = make_all_reduce_exchange();
  const auto nothing = make_no_feedback();
  exchange->stage(bucket, *nothing, communicator, {});
  here.non_finite = exchange->non_finite();
}

void PowerSgdByTensors::stage(Bucket& bucket, Communicator& communicator, const StepContext& step) {
  State& here = state(bucket);
  here.dense = step.transmission == Transmission::dense;
  here.non_finite.reset();
  if (here.dense) return stage_dense(bucket, here, communicator);

  here.matrices.clear();
  here.uncompressed.clear();
  here.own.clear();
  const auto options = bucket.gradient.options();
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    if (bucket.layout.rests(i)) continue;
    const LowRankShape shape = shape_of(bucket.slices[i]);
    if (shape.rank == 0) {
      here.uncompressed.push_back({i, values_of(bucket, i).clone()});
    } else {
      here.matrices.push_back({i,
                               shape,
                               at::empty({shape.rows, shape.rank}, options),
                               at::empty({shape.rank, shape.columns}, options),
                               {}});
    }
  }

  // A message to all, its mean, and which slice makes it no number.
  const auto reduce = [&](const std::vector<std::size_t>& slices,
                          const std::vector<at::Tensor>& parts) {
    sum_in_one_message(parts, communicator);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const bool good = all_finite(parts[i].reshape({-1}));
      if (!good) here.non_finite = std::min(here.non_finite.value_or(slices[i]), slices[i]);
      if (communicator.size() > 1) parts[i].div_(communicator.size());
    }
  };

  const std::vector<at::Tensor> start = starts(bucket, here, step);
  std::vector<std::size_t> slices;
  std::vector<at::Tensor> first, second;
  for (std::size_t i = 0; i < here.matrices.size(); ++i) {
    Matrix& matrix = here.matrices[i];
    at::Tensor m = values_of(bucket, matrix.slice).view({matrix.shape.rows, matrix.shape.columns});
    if (feedback_) m.add_(here.residuals[matrix.slice]);
    here.own.push_back(m.clone());
    matrix.left.copy_(at::mm(m, start[i].t()));
    slices.push_back(matrix.slice);
    first.push_back(matrix.left);
    second.push_back(matrix.right);
  }
  for (const Sent& sent : here.uncompressed) {
    slices.push_back(sent.slice);
    first.push_back(sent.values);
  }
  reduce(slices, first);

  const auto dtype = bucket.gradient.scalar_type();
  for (std::size_t i = 0; i < here.matrices.size(); ++i) {
    Matrix& matrix = here.matrices[i];
    matrix.left.copy_(orthonormal(matrix.left.t(), {}, tolerance(dtype), shortest(dtype)).t());
    matrix.own_right = at::mm(matrix.left.t(), here.own[i]);
    matrix.right.copy_(matrix.own_right);
  }
  reduce(slices, second);
}

std::optional<std::string> PowerSgdByTensors::non_finite(const Bucket& bucket) {
  const auto slice = state(bucket).non_finite;
  if (!slice) return std::nullopt;
  return bucket.slices[*slice].name;
}

void PowerSgdByTensors::show_estimate(const Bucket&, Bucket&) {
  throw Bug("bug: tensor operations have no estimate before the commit");
}

void PowerSgdByTensors::commit(Bucket& bucket) {
  State& here = state(bucket);
  const auto clear = [&](const Slice& slice) {
    bucket.gradient.narrow(0, slice.offset, slice.numel).zero_();
  };
  if (!here.dense) {
    for (std::size_t i = 0; i < here.matrices.size(); ++i) {
      const Matrix& matrix = here.matrices[i];
      if (bucket.slices[matrix.slice].absent) continue;
      values_of(bucket, matrix.slice).copy_(at::mm(matrix.left, matrix.right).view({-1}));
      if (feedback_) {
        here.residuals[matrix.slice].copy_(here.own[i].sub(at::mm(matrix.left, matrix.own_right)));
      }
      if (power_.warm_start) here.factors[matrix.slice].copy_(matrix.right);
    }
    for (const Sent& sent : here.uncompressed) values_of(bucket, sent.slice).copy_(sent.values);
  }
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (here.dense ? slice.absent : bucket.rests(i)) clear(slice);
  }
}

void PowerSgdByTensors::visit(const Bucket& bucket, StateVisitor& visitor) {
  State& here = state(bucket);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (shape_of(slice).rank == 0) continue;
    if (feedback_) {
      visitor.tensor({.name = "residual/" + slice.name,
                      .kind = StateKind::averaged,
                      .tensor = here.residuals[i].view(slice.shape)});
    }
    if (power_.warm_start) {
      visitor.tensor({.name = "factor/" + slice.name,
                      .kind = StateKind::replicated,
                      .tensor = here.factors[i]});
    }
  }
}

std::vector<SlicePlan> PowerSgdByTensors::plan(const Bucket&) const {
  return {};
}

}  // namespace thinwire::reference
