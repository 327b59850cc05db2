#include "collectives/compression/reducer/pipelined.h"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/feedback/eta.h"
#include "collectives/compression/reducer/absent.h"
#include "collectives/compression/reducer/rounding.h"

namespace thinwire {
namespace {

char* bytes_of(const at::Tensor& tensor) {
  return static_cast<char*>(tensor.data_ptr());
}

// A null pointer for a tensor that is not there.
template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// Of a list of one number per block.
template <typename T>
T* from_block(const at::Tensor& list, std::int64_t block) {
  return list.defined() ? list.data_ptr<T>() + block : nullptr;
}

std::unique_ptr<Exchange> make_exchange(ExchangeKind kind) {
  if (kind == ExchangeKind::all_gather) return make_all_gather_exchange();
  return make_two_stage_exchange();  // where all is dense, no payload is sent
}

}  // namespace

PipelinedReducer::PipelinedReducer(const CompressionOptions& options, const ReducerDevice& device)
    : options_(options),
      codecs_(options),
      device_(device),
      exchange_(make_exchange(options.exchange)) {}

PipelinedReducer::BucketState& PipelinedReducer::state_of(const Bucket& bucket) {
  const auto found = states_.find(bucket.index);
  check(found != states_.end(), "the bucket was prepared");
  return found->second;
}

void PipelinedReducer::prepare(const Bucket& bucket, int rank, int size) {
  check(bucket.gradient.is_cpu() || !device_.queue->on_host(),
        "a bucket on a device has a reducer of that device");
  BucketState here;
  // With an all-gather nobody owns a part.
  here.chunks =
      has_owners() ? cut_into_chunks(bucket, codecs_.of(bucket), size) : one_chunk(bucket);
  here.owner = has_owners() ? static_cast<std::size_t>(rank) : 0;
  here.size = size;
  here.dtype = bucket.gradient.scalar_type();
  const auto options = bucket.gradient.options();
  if (options_.feedback.kind == FeedbackKind::error_feedback) {
    here.state.residual = at::zeros_like(bucket.gradient);
    here.state.owner_residual = at::zeros({owned(here).count()}, options);
  } else if (options_.feedback.kind == FeedbackKind::econtrol) {
    here.state = make_econtrol_state(bucket, owned(here),
                                     has_owners() ? Averaging::by_owners : Averaging::by_all);
    if (!fixed_eta(options_.feedback.eta, codecs_.codec())) here.measured.emplace();
  }
  const auto clamp = codecs_.codec() ? codecs_.codec()->clamp() : std::nullopt;
  if (clamp) here.saturation.emplace(clamp->largest);
  here.flag = FiniteFlag(bucket, *device_.queue);
  states_.insert_or_assign(bucket.index, std::move(here));
}

void PipelinedReducer::stage(Bucket& bucket, Communicator& communicator, const StepContext& step) {
  BucketState& here = state_of(bucket);
  here.timeout = communicator.timeout();
  here.staged_dense =
      step.transmission == Transmission::dense || options_.exchange == ExchangeKind::all_reduce;
  bucket.undecoded.reset();
  host_is_behind_ = true;
  staged_.push_back(&here);
  adopt_layout(bucket, here);
  bring_into_order(bucket, here);
  here.order.apply(bucket.gradient, {0, bucket.numel()}, device_);
  here.flag.clear(*device_.queue);
  with_type(here.dtype, [&]<typename T>(T) {
    if (here.staged_dense) {
      stage_dense<T>(bucket, here, communicator);
    } else {
      stage_compressed<T>(bucket, here, communicator, step);
    }
  });
}

template <typename T>
void PipelinedReducer::stage_dense(Bucket& bucket, BucketState& here, Communicator& communicator) {
  if (here.state.tracker.defined()) {
    if (!here.own_gradient.defined()) here.own_gradient = at::zeros_like(bucket.gradient);
    device_.queue->copy(here.own_gradient.data_ptr(), bucket.gradient.const_data_ptr(),
                        bucket.gradient.nbytes());
  }
  const at::Tensor message = here.dense.pack(bucket, here.chunks, *device_.queue);
  if (message.numel() > 0) communicator.all_reduce(message, ReduceOp::sum)->wait();
  here.dense.unpack(bucket, *device_.queue);
  const auto is_sent = [](const Block& block) { return block.format.coding != Coding::held; };
  for_each_run(here.table.entries(), is_sent, [&](std::int64_t first, std::int64_t count) {
    device_.kernels<T>().mean_and_check({.blocks = here.table.data() + first,
                                         .block_count = count,
                                         .gradient = bucket.gradient.data_ptr<T>(),
                                         .ranks = communicator.size(),
                                         .flag = here.flag.data()},
                                        device_.queue->executor());
  });
}

// Where encoding tells what it has lost, if anybody wants to know.
template <typename T>
T* PipelinedReducer::energy_of(BucketState& here, std::int64_t first_block) {
  if (here.measured) return here.measured->energy<T>(first_block);
  return here.saturation ? here.saturation->energy<T>(first_block) : nullptr;
}

template <typename T>
void PipelinedReducer::stage_compressed(Bucket& bucket, BucketState& here,
                                        Communicator& communicator, const StepContext& step) {
  const RoundingKeys keys = rounding_keys(step, bucket, communicator.rank());
  reserve_buffers(bucket, here);
  here.decoding = decoding_of(here, step.estimate);
  prepare_decoding(bucket, here);
  if (here.saturation) {
    here.saturation->begin(step.step, here.table.size(), bucket.gradient, *device_.queue);
  }
  if (here.state.tracker.defined()) {
    here.renewal.renew(bucket, here.chunks, here.state, communicator, step.step, device_,
                       here.flag);
  }
  for (const Segment& segment : here.segments) {
    device_.kernels<T>().encode(
        {.blocks = here.table.data() + segment.first_block,
         .block_count = segment.block_count,
         .gradient = bucket.gradient.data_ptr<T>(),
         .residual = {.error = data_or_null<T>(here.state.residual),
                      .tracker = data_or_null<T>(here.state.tracker),
                      .eta = data_or_null<T>(here.state.eta),
                      .sent = from_block<T>(here.sent.now, segment.first_block)},
         .payload = bytes_of(here.buffers.message),
         .rounding_key = keys.worker,
         .energy = energy_of<T>(here, segment.first_block),
         .sent_next = from_block<T>(here.sent.next, segment.first_block)},
        device_.queue->executor());
    exchange_->send(
        {.segment = &segment,
         .buffers = &here.buffers,
         .owner = here.owner,
         .reduce = [this, &here, &segment, key = keys.owner] { reduce_own<T>(here, segment, key); },
         .take_in = [this, &here, &segment] { take_in<T>(here, segment); }},
        communicator);
  }
  exchange_->flush(communicator);
}

template <typename T>
void PipelinedReducer::reduce_own(BucketState& here, const Segment& segment, std::uint64_t key) {
  const std::int64_t begin = owned(here).begin;
  device_.kernels<T>().owner_reduce(
      {.blocks = here.table.data() + segment.own_first_block,
       .block_count = segment.own_block_count,
       .chunk_begin = begin,
       .payload_begin = segment.own_begin,
       .arrived = bytes_of(here.buffers.arrived) + segment.own_sent * here.size,
       .stride = segment.bytes[here.owner],
       .ranks = here.size,
       // What the owners have sent in all is kept for the whole bucket.
       .residual = {.error = data_or_null<T>(here.state.owner_residual),
                    .tracker = here.state.tracker.defined()
                                   ? here.state.estimate.const_data_ptr<T>() + begin
                                   : nullptr,
                    .eta = data_or_null<T>(here.state.eta),
                    .sent = from_block<T>(here.owner_sent.now, segment.own_first_block)},
       .owner_next = here.owner_next.data_ptr<T>(),
       .mean_tracker = data_or_null<T>(here.state.mean_tracker),
       .mean_tracker_next =
           here.state.tracker.defined() ? here.mean_tracker_next.data_ptr<T>() : nullptr,
       .reply = bytes_of(here.buffers.reply) + segment.own_sent,
       .rounding_key = key,
       .sent_next = from_block<T>(here.owner_sent.next, segment.own_first_block)},
      device_.queue->executor());
}

template <typename T>
void PipelinedReducer::take_in(BucketState& here, const Segment& segment) {
  const Received from = exchange_->received(here.buffers, segment, here.size);
  device_.kernels<T>().first_non_finite({.blocks = here.table.data() + segment.first_block,
                                         .block_count = segment.block_count,
                                         .payload = from.payload,
                                         .stride = from.stride,
                                         .ranks = from.ranks,
                                         .flag = here.flag.data()},
                                        device_.queue->executor());
  if (here.decoding == Decoding::on_arrival) decode<T>(here, segment, here.decoded);
}

template <typename T>
void PipelinedReducer::decode(const BucketState& here, const Segment& segment,
                              const at::Tensor& into) {
  const Received from = exchange_->received(here.buffers, segment, here.size);
  device_.kernels<T>().decode({.blocks = here.table.data() + segment.first_block,
                               .block_count = segment.block_count,
                               .payload = from.payload,
                               .stride = from.stride,
                               .ranks = from.ranks,
                               .into = into.data_ptr<T>()},
                              device_.queue->executor());
}

void PipelinedReducer::settle(Communicator&) {
  exchange_->settle();
  for (BucketState* here : staged_) {
    here->flag.fetch(*device_.queue);
    if (here->measured && !here->staged_dense) {
      here->measured->fetch(here->state.eta, *device_.queue);
    }
    if (here->saturation && !here->staged_dense) here->saturation->fetch(*device_.queue);
  }
  staged_.clear();
}

std::optional<std::string> PipelinedReducer::non_finite(const Bucket& bucket) {
  const BucketState& here = state_of(bucket);
  if (host_is_behind_) device_.queue->synchronize(Clock::now() + here.timeout);
  host_is_behind_ = false;
  return here.flag.name(bucket);
}

std::optional<std::string> PipelinedReducer::warning(const Bucket& bucket) const {
  const BucketState& here = states_.at(bucket.index);
  if (!here.saturation || here.staged_dense) return std::nullopt;
  const auto name = here.saturation->name(bucket, here.table);
  if (!name) return std::nullopt;
  const Clamp clamp = *codecs_.codec()->clamp();
  return fmt::format(
      "{} clamps gradients of {} at {}, and {}; use {}, or gradients that are smaller",
      clamp.coding, *name, clamp.largest,
      here.state.residual.defined() ? "what is beyond piles up in its residual"
                                    : "what is beyond is lost",
      clamp.instead);
}

void PipelinedReducer::show_estimate(const Bucket& bucket, Bucket& view) {
  BucketState& here = state_of(bucket);
  view.undecoded.reset();
  view.gradient = bucket.gradient;
  if (here.staged_dense && here.order.is_natural()) return;
  if (!here.staged_dense && here.decoding == Decoding::by_reader) {
    view.undecoded = here.undecoded;
    return;
  }
  if (here.order.is_natural() && here.decoding == Decoding::on_arrival) {
    view.gradient = here.decoded;
    return;
  }
  // What a commit decodes over what it makes of no use, or brings back into the bucket's order.
  if (!here.shown.defined()) here.shown = at::zeros_like(bucket.gradient);
  view.gradient = here.shown;
  const auto show = [&](const at::Tensor& from) {
    device_.queue->copy(here.shown.data_ptr(), from.const_data_ptr(), here.shown.nbytes());
  };
  if (here.staged_dense) {
    show(bucket.gradient);
  } else if (here.decoding == Decoding::on_arrival) {
    show(here.decoded);
  } else {
    with_type(here.dtype, [&]<typename T>(T) { decode_for_show<T>(bucket, here); });
  }
  here.order.revert(here.shown, {0, bucket.numel()}, device_);
}

template <typename T>
void PipelinedReducer::decode_for_show(const Bucket& bucket, BucketState& here) {
  if (here.state.tracker.defined()) {
    device_.queue->copy(here.shown.data_ptr(), here.state.estimate.const_data_ptr(),
                        here.shown.nbytes());
  }
  for (const Segment& segment : here.segments) {
    if (here.state.tracker.defined()) {
      integrate<T>(bucket, here, segment.first_block, segment.block_count,
                   exchange_->received(here.buffers, segment, here.size), here.shown);
    } else {
      decode<T>(here, segment, here.shown);
    }
  }
  if (here.state.tracker.defined()) clear_inactive(here.shown, here.chunks, *device_.queue);
}

void PipelinedReducer::commit(Bucket& bucket) {
  BucketState& here = state_of(bucket);
  with_type(here.dtype, [&]<typename T>(T) {
    if (here.staged_dense) {
      if (here.state.tracker.defined()) commit_dense<T>(bucket, here);
    } else {
      commit_compressed<T>(bucket, here);
    }
  });
  if (bucket.undecoded) return;
  here.order.revert(bucket.gradient, {0, bucket.numel()}, device_);
  clear_absent(bucket, *device_.queue);
}

// The trackers follow the exact gradients; what was not sent before stays to be sent.
template <typename T>
void PipelinedReducer::commit_dense(Bucket& bucket, BucketState& here) {
  const auto copy = [&](at::Tensor& to, std::int64_t begin, const at::Tensor& from,
                        std::int64_t from_begin, std::int64_t count) {
    device_.queue->copy(to.data_ptr<T>() + begin, from.const_data_ptr<T>() + from_begin,
                        static_cast<std::size_t>(count) * sizeof(T));
  };
  const Range own = owned(here);
  for (const Chunk& chunk : here.chunks) {
    for (const Piece& piece : chunk.pieces) {
      if (bucket.rests(piece.slice) || piece.live == 0) continue;
      copy(here.state.tracker, piece.begin, here.own_gradient, piece.begin, piece.live);
      copy(here.state.estimate, piece.begin, bucket.gradient, piece.begin, piece.live);
      if (own.begin <= piece.begin && piece.begin < own.end) {
        copy(here.state.mean_tracker, piece.begin - own.begin, bucket.gradient, piece.begin,
             piece.live);
      }
    }
  }
}

void PipelinedReducer::hold_state_of_absent(const Bucket& bucket, BucketState& here) {
  Queue& queue = *device_.queue;
  const Range own = owned(here);
  const EControlState& state = here.state;
  hold_absent(bucket, {0, bucket.numel()}, bucket.gradient, state.residual, queue);
  hold_absent(bucket, own, here.owner_next, state.owner_residual, queue);
  hold_absent(bucket, own, here.mean_tracker_next, state.mean_tracker, queue);
  // A message that is kept means something with the scale that it was sent with only.
  const auto hold_scales = [&](const Sent& sent) {
    if (!sent.now.defined()) return;
    const auto width = static_cast<std::int64_t>(sent.now.element_size());
    for_each_run(here.table.entries(), is_of_absent(bucket),
                 [&](std::int64_t first, std::int64_t count) {
                   queue.copy(static_cast<char*>(sent.next.data_ptr()) + first * width,
                              static_cast<const char*>(sent.now.const_data_ptr()) + first * width,
                              static_cast<std::size_t>(count * width));
                 });
  };
  hold_scales(here.sent);
  hold_scales(here.owner_sent);
}

template <typename T>
void PipelinedReducer::integrate(const Bucket& bucket, const BucketState& here,
                                 std::int64_t first_block, std::int64_t block_count,
                                 const Received& from, const at::Tensor& into) {
  const auto run = [&](std::int64_t first, std::int64_t count) {
    device_.kernels<T>().integrate({.blocks = here.table.data() + first_block + first,
                                    .block_count = count,
                                    .payload = from.payload,
                                    .stride = from.stride,
                                    .ranks = from.ranks,
                                    .into = into.data_ptr<T>()},
                                   device_.queue->executor());
  };
  if (!has_absent(bucket)) return run(0, block_count);
  const auto blocks = here.table.entries().subspan(static_cast<std::size_t>(first_block),
                                                   static_cast<std::size_t>(block_count));
  for_each_run(blocks, std::not_fn(is_of_absent(bucket)), run);
}

template <typename T>
void PipelinedReducer::commit_compressed(Bucket& bucket, BucketState& here) {
  here.renewal.commit(bucket, here.state, *device_.queue);
  if (has_absent(bucket)) hold_state_of_absent(bucket, here);
  if (here.state.residual.defined()) {
    std::swap(bucket.gradient, here.state.residual);
    std::swap(here.state.owner_residual, here.owner_next);
    std::swap(here.sent.now, here.sent.next);
    std::swap(here.owner_sent.now, here.owner_sent.next);
    here.residual_is_message = keeps_messages();
  }
  if (here.decoding == Decoding::by_reader) {
    bucket.undecoded = here.undecoded;
  } else if (here.decoding == Decoding::on_arrival) {
    std::swap(bucket.gradient, here.decoded);
  } else if (here.state.tracker.defined()) {
    commit_trackers<T>(bucket, here);
  } else {
    for (const Segment& segment : here.segments) decode<T>(here, segment, bucket.gradient);
  }
}

template <typename T>
void PipelinedReducer::commit_trackers(Bucket& bucket, BucketState& here) {
  integrate<T>(bucket, here, 0, here.table.size(), {.payload = bytes_of(here.buffers.message)},
               here.state.tracker);
  std::swap(here.state.mean_tracker, here.mean_tracker_next);
  for (const Segment& segment : here.segments) {
    integrate<T>(bucket, here, segment.first_block, segment.block_count,
                 exchange_->received(here.buffers, segment, here.size), here.state.estimate);
  }
  device_.queue->copy(bucket.gradient.data_ptr(), here.state.estimate.const_data_ptr(),
                      bucket.gradient.nbytes());
  clear_inactive(bucket.gradient, here.chunks, *device_.queue);
  if (here.measured) here.measured->learn(bucket, here.state.eta, *device_.queue);
}

void PipelinedReducer::rollback(Bucket& bucket) {
  BucketState& here = state_of(bucket);
  here.renewal.rollback(bucket, here.state, *device_.queue);
}

void PipelinedReducer::visit(const Bucket& bucket, StateVisitor& visitor) {
  BucketState& here = state_of(bucket);
  adopt_layout(bucket, here);
  const bool changes = here.residual_is_message || here.state_is_in_order;
  form_errors(here);
  bring_out_of_order(bucket, here);
  // The visitor reads it by another queue, or from the host.
  if (changes) device_.queue->synchronize(Clock::now() + here.timeout);
  const EControlState& state = here.state;
  if (state.tracker.defined()) {
    visit_econtrol(bucket, state, here.measured ? EtaKind::measured : EtaKind::fixed, visitor);
  } else if (state.residual.defined()) {
    visit_residuals(bucket, state.residual, owned(here), state.owner_residual, visitor);
  }
}

std::vector<SlicePlan> PipelinedReducer::plan(const Bucket& bucket) const {
  return codecs_.plan(bucket);
}

}  // namespace thinwire
