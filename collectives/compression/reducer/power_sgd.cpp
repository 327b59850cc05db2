#include "collectives/compression/reducer/power_sgd.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/philox.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/reducer/absent.h"

namespace thinwire {

PowerSgdReducer::PowerSgdReducer(const CompressionOptions& options, const ReducerDevice& device)
    : power_(std::get<PowerSgd>(options.codec)),
      policy_(options.policy),
      feedback_(options.feedback.kind == FeedbackKind::error_feedback),
      device_(device) {}

double PowerSgdReducer::tolerance(at::ScalarType dtype) const {
  return with_type(dtype, [&]<typename T>(T) {
    return std::max<double>(power_.orthogonalization_epsilon,
                            16 * std::numeric_limits<T>::epsilon());
  });
}

PowerSgdReducer::BucketState& PowerSgdReducer::state_of(const Bucket& bucket) {
  const auto found = states_.find(bucket.index);
  check(found != states_.end(), "the bucket was prepared");
  return found->second;
}

double* PowerSgdReducer::vectors(const BucketState& here) {
  return here.vectors.defined() ? here.vectors.data_ptr<double>() : nullptr;
}

LowRankTables PowerSgdReducer::tables(const BucketState& here) {
  return {.matrices = here.table.data(),
          .matrix_count = here.table.size(),
          .largest_rank = here.largest_rank,
          .bands = here.bands.data(),
          .band_count = here.bands.size(),
          .tiles = here.tiles.data(),
          .tile_count = here.tiles.size(),
          .top_tile_count = here.top_tile_count};
}

void PowerSgdReducer::stage(Bucket& bucket, Communicator& communicator, const StepContext& step) {
  BucketState& here = state_of(bucket);
  here.bucket = &bucket;
  here.timeout = communicator.timeout();
  here.staged_dense = step.transmission == Transmission::dense;
  host_is_behind_ = true;
  adopt_layout(bucket, here);
  if (!here.residual_is_in_order && !here.order.is_natural()) {
    here.order.apply(here.residual, {0, bucket.numel()}, device_);
    here.residual_is_in_order = true;
  }
  here.order.apply(bucket.gradient, {0, bucket.numel()}, device_);
  here.flag.clear(*device_.queue);
  if (here.staged_dense) {
    start(here, here.dense.pack(bucket, here.chunks, *device_.queue), InFlight::mean, communicator);
  } else {
    send_left(bucket, here, communicator, step);
  }
  // The message of the bucket before travelled meanwhile.
  if (!underway_.empty()) send_right(*underway_.back(), communicator);
  underway_.push_back(&here);
}

void PowerSgdReducer::start(BucketState& here, at::Tensor tensor, InFlight in_flight,
                            Communicator& communicator) {
  here.in_flight = in_flight;
  here.work = nullptr;
  if (tensor.numel() > 0) here.work = communicator.all_reduce(std::move(tensor), ReduceOp::sum);
}

void PowerSgdReducer::receive(BucketState& here, int ranks) {
  if (here.work) here.work->wait();
  here.work = nullptr;
  const InFlight arrived = std::exchange(here.in_flight, InFlight::nothing);
  if (arrived == InFlight::mean) here.dense.unpack(*here.bucket, *device_.queue);
  const at::Tensor& tensor = arrived == InFlight::mean   ? here.bucket->gradient
                             : arrived == InFlight::left ? here.message
                                                         : here.right;
  const QueueTable<Block>& table = arrived == InFlight::mean   ? here.live
                                   : arrived == InFlight::left ? here.first
                                                               : here.second;
  with_type(tensor.scalar_type(), [&]<typename T>(T) {
    device_.kernels<T>().mean_and_check({.blocks = table.data(),
                                         .block_count = table.size(),
                                         .gradient = tensor.data_ptr<T>(),
                                         .ranks = ranks,
                                         .flag = here.flag.data()},
                                        device_.queue->executor());
  });
}

void PowerSgdReducer::copy(const at::Tensor& to, std::int64_t to_begin, const at::Tensor& from,
                           std::int64_t from_begin, std::int64_t count) {
  const auto width = static_cast<std::int64_t>(to.element_size());
  device_.queue->copy(static_cast<char*>(to.data_ptr()) + to_begin * width,
                      static_cast<const char*>(from.const_data_ptr()) + from_begin * width,
                      static_cast<std::size_t>(count * width));
}

void PowerSgdReducer::send_left(Bucket& bucket, BucketState& here, Communicator& communicator,
                                const StepContext& step) {
  multiply_left(bucket, here, step);
  for (const Passenger& passenger : here.passengers) {
    if (feedback_ && here.slices[passenger.slice].has_residual) continue;
    const Slice& slice = bucket.slices[passenger.slice];
    copy(here.message, passenger.begin, bucket.gradient, slice.offset, passenger.count);
  }
  if (here.owing.size() > 0) {
    with_type(here.message.scalar_type(), [&]<typename T>(T) {
      device_.kernels<T>().encode({.blocks = here.owing.data(),
                                   .block_count = here.owing.size(),
                                   .gradient = bucket.gradient.data_ptr<T>(),
                                   .residual = {.error = here.residual.const_data_ptr<T>()},
                                   .payload = static_cast<char*>(here.message.data_ptr())},
                                  device_.queue->executor());
    });
  }
  start(here, here.message, InFlight::left, communicator);
}

// If the bucket's left factors are underway: receives them and sends the right ones.
void PowerSgdReducer::send_right(BucketState& here, Communicator& communicator) {
  if (here.in_flight != InFlight::left) return;
  receive(here, communicator.size());
  multiply_right(here);
  copy(here.right, 0, here.own_right, 0, here.right.numel());
  start(here, here.right, InFlight::right, communicator);
}

void PowerSgdReducer::multiply_left(Bucket& bucket, BucketState& here, const StepContext& step) {
  with_type(bucket.gradient.scalar_type(), [&]<typename T>(T) {
    const LowRankKernels<T>& run = device_.low_rank<T>();
    // The start is of no use once the right factors are sent from its place.
    T* start = here.right.data_ptr<T>();
    run.orthonormal_right({.tables = tables(here),
                           .kept = power_.warm_start ? here.factors.const_data_ptr<T>() : nullptr,
                           .factors = start,
                           .work = vectors(here),
                           .tolerance = tolerance(bucket.gradient.scalar_type()),
                           .draw_key = Philox(step.seed, PhiloxStream::low_rank, 0).key(),
                           .step = static_cast<std::uint64_t>(step.step)},
                          device_.queue->executor());
    run.project_left(
        {.tables = tables(here),
         .bucket = bucket.gradient.data_ptr<T>(),
         .owed = {.residual = feedback_ ? here.residual.const_data_ptr<T>() : nullptr,
                  .left = here.residual_is_matrix ? here.kept_left.const_data_ptr<T>() : nullptr,
                  .right = here.residual_is_matrix ? here.kept_right.const_data_ptr<T>() : nullptr},
         .right = start,
         .left = here.message.data_ptr<T>()},
        device_.queue->executor());
  });
}

void PowerSgdReducer::multiply_right(BucketState& here) {
  with_type(here.message.scalar_type(), [&]<typename T>(T) {
    const LowRankKernels<T>& run = device_.low_rank<T>();
    T* left = here.message.data_ptr<T>();
    run.orthonormal_left({.tables = tables(here),
                          .factors = left,
                          .work = vectors(here),
                          .tolerance = tolerance(here.message.scalar_type())},
                         device_.queue->executor());
    run.project_right({.tables = tables(here),
                       .bucket = here.bucket->gradient.const_data_ptr<T>(),
                       .left = left,
                       .partial = here.partial.defined() ? here.partial.data_ptr<T>() : nullptr,
                       .right = here.own_right.data_ptr<T>()},
                      device_.queue->executor());
  });
}

void PowerSgdReducer::settle(Communicator& communicator) {
  for (BucketState* here : underway_) send_right(*here, communicator);
  for (BucketState* here : underway_) {
    receive(*here, communicator.size());
    here->flag.fetch(*device_.queue);
  }
  underway_.clear();
}

std::optional<std::string> PowerSgdReducer::non_finite(const Bucket& bucket) {
  const BucketState& here = state_of(bucket);
  if (host_is_behind_) device_.queue->synchronize(Clock::now() + here.timeout);
  host_is_behind_ = false;
  return here.flag.name(bucket);
}

void PowerSgdReducer::show_estimate(const Bucket& bucket, Bucket& view) {
  BucketState& here = state_of(bucket);
  view.undecoded.reset();
  view.gradient = bucket.gradient;
  if (here.staged_dense && here.order.is_natural()) return;
  if (!here.shown.defined()) here.shown = at::zeros_like(bucket.gradient);
  view.gradient = here.shown;
  if (here.staged_dense) {
    copy(here.shown, 0, bucket.gradient, 0, bucket.numel());
  } else {
    multiply_back(bucket, here, here.shown);
    clear_inactive(here.shown, here.chunks, *device_.queue);
  }
  here.order.revert(here.shown, {0, bucket.numel()}, device_);
}

void PowerSgdReducer::commit(Bucket& bucket) {
  BucketState& here = state_of(bucket);
  if (!here.staged_dense) commit_compressed(bucket, here);
  here.order.revert(bucket.gradient, {0, bucket.numel()}, device_);
  clear_absent(bucket, *device_.queue);
}

void PowerSgdReducer::commit_compressed(Bucket& bucket, BucketState& here) {
  if (has_absent(bucket)) hold_residual_of_absent(bucket, here);
  // With feedback the gradient buffer becomes the residual, and the old residual the estimate.
  const at::Tensor& estimate = feedback_ ? here.residual : bucket.gradient;
  if (feedback_) {
    for (const Piece& piece : here.chunks[0].pieces) {
      if (piece.live == piece.count) continue;
      copy(bucket.gradient, piece.begin + piece.live, estimate, piece.begin + piece.live,
           piece.count - piece.live);
    }
  }
  multiply_back(bucket, here, estimate);
  if (power_.warm_start) keep_factors(bucket, here);
  clear_inactive(estimate, here.chunks, *device_.queue);
  if (!feedback_) return;
  std::swap(bucket.gradient, here.residual);
  copy(here.kept_left, 0, here.message, 0, here.left_numel);
  std::swap(here.own_right, here.kept_right);
  here.residual_is_matrix = true;
  if (has_absent(bucket)) forget_factors_of_absent(bucket, here);
}

void PowerSgdReducer::hold_residual_of_absent(Bucket& bucket, BucketState& here) {
  if (!feedback_) return;
  form_residual(here);
  hold_absent(bucket, {0, bucket.numel()}, bucket.gradient, here.residual, *device_.queue);
}

void PowerSgdReducer::forget_factors_of_absent(const Bucket& bucket, BucketState& here) {
  const auto width = static_cast<std::int64_t>(bucket.gradient.element_size());
  const auto clear = [&](const at::Tensor& factors, std::int64_t begin, std::int64_t count) {
    device_.queue->fill(static_cast<char*>(factors.data_ptr()) + begin * width, 0,
                        static_cast<std::size_t>(count * width));
  };
  for (std::size_t m = 0; m < here.matrices.size(); ++m) {
    if (!bucket.slices[here.matrix_slices[m]].absent) continue;
    const LowRankMatrix& matrix = here.matrices[m];
    const auto [rows, columns, rank] = matrix.shape;
    clear(here.kept_left, matrix.left, rows * rank);
    clear(here.kept_right, matrix.right, rank * columns);
  }
}

// Neighbours in both buffers, which are all unless slices rest, go in one copy.
void PowerSgdReducer::keep_factors(const Bucket& bucket, BucketState& here) {
  std::int64_t to = 0;
  std::int64_t from = 0;
  std::int64_t count = 0;
  for (std::size_t m = 0; m < here.matrices.size(); ++m) {
    const LowRankMatrix& matrix = here.matrices[m];
    if (bucket.slices[here.matrix_slices[m]].absent) continue;
    if (matrix.factor != to + count || matrix.right != from + count) {
      copy(here.factors, to, here.right, from, count);
      to = matrix.factor;
      from = matrix.right;
      count = 0;
    }
    count += matrix.shape.rank * matrix.shape.columns;
  }
  copy(here.factors, to, here.right, from, count);
}

// into := the estimate of what is live.
void PowerSgdReducer::multiply_back(const Bucket& bucket, BucketState& here,
                                    const at::Tensor& into) {
  with_type(into.scalar_type(), [&]<typename T>(T) {
    device_.low_rank<T>().multiply({.tables = tables(here),
                                    .left = here.message.const_data_ptr<T>(),
                                    .right = here.right.const_data_ptr<T>(),
                                    .bucket = into.data_ptr<T>()},
                                   device_.queue->executor());
  });
  for (const Passenger& passenger : here.passengers) {
    const Slice& slice = bucket.slices[passenger.slice];
    copy(into, slice.offset, here.message, passenger.begin, passenger.count);
  }
}

void PowerSgdReducer::form_residual(BucketState& here) {
  if (!here.residual_is_matrix) return;
  with_type(here.residual.scalar_type(), [&]<typename T>(T) {
    device_.low_rank<T>().subtract({.tables = tables(here),
                                    .left = here.kept_left.const_data_ptr<T>(),
                                    .right = here.kept_right.const_data_ptr<T>(),
                                    .bucket = here.residual.data_ptr<T>()},
                                   device_.queue->executor());
  });
  here.residual_is_matrix = false;
}

void PowerSgdReducer::rollback(Bucket&) {}

void PowerSgdReducer::visit(const Bucket& bucket, StateVisitor& visitor) {
  BucketState& here = state_of(bucket);
  adopt_layout(bucket, here);
  const bool changes = here.residual_is_matrix || here.residual_is_in_order;
  form_residual(here);
  bring_out_of_order(bucket, here);
  // The visitor reads it by another queue, or from the host.
  if (changes) device_.queue->synchronize(Clock::now() + here.timeout);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    const LowRankShape& shape = here.slices[i].whole;
    if (feedback_ && here.slices[i].has_residual) {
      visitor.tensor(
          {.name = "residual/" + slice.name,
           .kind = StateKind::averaged,
           .tensor = here.residual.narrow(0, slice.offset, slice.numel).view(slice.shape)});
    }
    if (power_.warm_start && shape.rank > 0) {
      visitor.tensor(
          {.name = "factor/" + slice.name,
           .kind = StateKind::replicated,
           .tensor = here.factors.narrow(0, here.slices[i].factor, shape.rank * shape.columns)
                         .view({shape.rank, shape.columns})});
    }
  }
}

std::vector<SlicePlan> PowerSgdReducer::plan(const Bucket& bucket) const {
  std::vector<SlicePlan> plans;
  const auto width = static_cast<std::int64_t>(bucket.gradient.element_size());
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    const LowRankShape shape = live_shape(bucket, i);
    const std::int64_t live =
        bucket.layout.is_partial(i) ? bucket.layout.of(i).live.count(slice.numel) : slice.numel;
    SlicePlan entry;
    entry.name = slice.name;
    entry.numel = slice.numel;
    entry.compressed = shape.rank > 0;
    if (entry.compressed) {
      entry.coding = fmt::format("low rank {}", shape.rank);
      entry.payload_bytes = (shape.rows + shape.columns) * shape.rank * width;
    } else {
      // A policy may let vectors pass, but they have no rank.
      const std::string too_small =
          slice.is_vector()             ? "a vector"
          : bucket.layout.is_partial(i) ? "its live part is not whole rows"
          : bucket.layout.of(i).coding.rank
              ? "as its layout says"
              : fmt::format("too small for rank {} at min_compression_rate {}",
                            power_.matrix_approximation_rank, power_.min_compression_rate);
      entry.coding = "uncompressed: " + reason_for_dense(slice, policy_).value_or(too_small);
      entry.payload_bytes = live * width;
    }
    plans.push_back(std::move(entry));
  }
  return plans;
}

}  // namespace thinwire
