#include "collectives/compression/reducer/fused.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include "collectives/base/error.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/feedback/eta.h"
#include "collectives/compression/reducer/absent.h"
#include "collectives/compression/reducer/rounding.h"

namespace thinwire {
namespace {

// Segments on their way to their owners before the oldest is reduced, and on their way back before
// the oldest is waited for.
constexpr std::size_t kScattered = 4;
constexpr std::size_t kGathered = 8;

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

}  // namespace

FusedReducer::FusedReducer(const CompressionOptions& options, std::unique_ptr<Codec> codec,
                           const ReducerLaunch& launch)
    : options_(options), codecs_(std::move(codec), options.policy), launch_(launch) {}

FusedReducer::Path& FusedReducer::path(const Bucket& bucket) {
  const auto found = paths_.find(bucket.index);
  check(found != paths_.end(), "the bucket was prepared");
  return found->second;
}

void FusedReducer::prepare(const Bucket& bucket, int rank, int size) {
  check(bucket.gradient.is_cpu() || !launch_.queue->on_host(),
        "a bucket on a device has a reducer of that device");
  Path here;
  // With an all-gather nobody owns a part.
  here.chunks = cut_into_chunks(bucket, codecs_.of(bucket), has_owners() ? size : 1);
  here.rank = has_owners() ? static_cast<std::size_t>(rank) : 0;
  here.size = size;
  here.dtype = bucket.gradient.scalar_type();
  const auto options = bucket.gradient.options();
  if (options_.feedback.kind == FeedbackKind::error_feedback) {
    here.state.residual = at::zeros_like(bucket.gradient);
    here.state.owner_residual = at::zeros({owned(here).count()}, options);
  } else if (options_.feedback.kind == FeedbackKind::econtrol) {
    const auto eta = fixed_eta(options_.feedback.eta, codecs_.codec());
    here.state = make_econtrol_state(bucket, owned(here),
                                     has_owners() ? Averaging::by_owners : Averaging::by_all);
    here.state.eta.fill_(eta.value_or(0));
    if (!eta) here.measured.emplace();
  }
  const auto* cast = std::get_if<Cast>(&options_.codec);
  if (cast != nullptr && cast->half == Half::fp16) here.saturation.emplace();
  here.flag = FiniteFlag(bucket, *launch_.queue);
  paths_.insert_or_assign(bucket.index, std::move(here));
}

void FusedReducer::stage(Bucket& bucket, Communicator& communicator, const StepContext& step) {
  Path& here = path(bucket);
  here.timeout = communicator.timeout();
  here.staged_dense =
      step.transmission == Transmission::dense || options_.exchange == ExchangeKind::all_reduce;
  bucket.coded.reset();
  host_is_behind_ = true;
  staged_.push_back(&here);
  lay_out_blocks(bucket, here);
  here.flag.clear(*launch_.queue);
  with_type(bucket.gradient.scalar_type(), [&]<typename T>(T) {
    if (here.staged_dense) {
      stage_dense<T>(bucket, here, communicator);
    } else {
      stage_compressed<T>(bucket, here, communicator, step);
    }
  });
}

template <typename T>
void FusedReducer::stage_dense(Bucket& bucket, Path& here, Communicator& communicator) {
  if (here.state.tracker.defined()) {
    if (!here.own_gradient.defined()) here.own_gradient = at::zeros_like(bucket.gradient);
    launch_.queue->copy(here.own_gradient.data_ptr(), bucket.gradient.const_data_ptr(),
                        bucket.gradient.nbytes());
  }
  const at::Tensor message = here.dense.pack(bucket, *launch_.queue);
  if (message.numel() > 0) communicator.all_reduce(message, ReduceOp::sum)->wait();
  here.dense.unpack(bucket, *launch_.queue);
  for_each_run(bucket, here.table.entries(), std::not_fn(std::mem_fn(&Slice::frozen)),
               [&](std::int64_t first, std::int64_t count) {
                 launch_.kernels<T>().mean_and_check({.blocks = here.table.data() + first,
                                                      .block_count = count,
                                                      .gradient = bucket.gradient.data_ptr<T>(),
                                                      .ranks = communicator.size(),
                                                      .flag = here.flag.data()},
                                                     launch_.queue->stream());
               });
}

// Where encoding tells what it has lost, if anybody wants to know.
template <typename T>
T* FusedReducer::energy_of(Path& here, std::int64_t first_block) {
  if (here.measured) return here.measured->energy<T>(first_block);
  return here.saturation ? here.saturation->energy<T>(first_block) : nullptr;
}

template <typename T>
void FusedReducer::stage_compressed(Bucket& bucket, Path& here, Communicator& communicator,
                                    const StepContext& step) {
  const RoundingKeys keys = rounding_keys(step, bucket, communicator.rank());
  reserve_buffers(bucket, here);
  here.decoding = decoding_of(here, step.estimate);
  prepare_decoding(bucket, here);
  if (here.saturation) {
    here.saturation->begin(step.step, here.table.size(), bucket.gradient, *launch_.queue);
  }
  if (here.state.tracker.defined()) {
    here.renewal.renew(bucket, here.state, communicator, step.step, launch_, here.flag);
  }
  for (const Segment& segment : here.segments) {
    launch_.kernels<T>().encode(
        {.blocks = here.table.data() + segment.first_block,
         .block_count = segment.block_count,
         .gradient = bucket.gradient.data_ptr<T>(),
         .residual = {.error = data_or_null<T>(here.state.residual),
                      .tracker = data_or_null<T>(here.state.tracker),
                      .eta = data_or_null<T>(here.state.eta),
                      .sent = from_block<T>(here.sent.now, segment.first_block)},
         .payload = bytes_of(here.messages),
         .rounding_key = keys.worker,
         .energy = energy_of<T>(here, segment.first_block),
         .sent_next = from_block<T>(here.sent.next, segment.first_block)},
        launch_.queue->stream());
    const at::Tensor message = here.messages.narrow(0, segment.begin, segment.total);
    InFlight next{&here, &segment, keys.owner, nullptr};
    if (!has_owners()) {
      next.work = communicator.all_gather(
          here.received.narrow(0, segment.begin * here.size, segment.total * here.size), message,
          Counts(static_cast<std::size_t>(here.size), segment.total));
      gathered_.push_back(std::move(next));
    } else {
      const std::int64_t own = segment.bytes[here.rank];
      next.work = communicator.all_to_all(
          here.arrived.narrow(0, segment.own_sent * here.size, own * here.size), message,
          Counts(static_cast<std::size_t>(here.size), own), segment.bytes);
      scattered_.push_back(std::move(next));
      if (scattered_.size() > kScattered) reduce_oldest<T>(communicator);
    }
    while (gathered_.size() > kGathered) take_in_oldest();
  }
  while (!scattered_.empty()) reduce_oldest<T>(communicator);
}

template <typename T>
void FusedReducer::reduce_oldest(Communicator& communicator) {
  InFlight next = std::move(scattered_.front());
  scattered_.pop_front();
  next.work->wait();
  Path& here = *next.path;
  const Segment& segment = *next.segment;
  const std::int64_t own = segment.bytes[here.rank];
  const std::int64_t begin = owned(here).begin;
  launch_.kernels<T>().owner_reduce(
      {.blocks = here.table.data() + segment.own_first_block,
       .block_count = segment.own_block_count,
       .chunk_begin = begin,
       .payload_begin = segment.own_begin,
       .arrived = bytes_of(here.arrived) + segment.own_sent * here.size,
       .stride = own,
       .ranks = static_cast<std::int32_t>(here.size),
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
       .reply = bytes_of(here.reply) + segment.own_sent,
       .rounding_key = next.owner_key,
       .sent_next = from_block<T>(here.owner_sent.next, segment.own_first_block)},
      launch_.queue->stream());
  next.work = communicator.all_gather(here.received.narrow(0, segment.begin, segment.total),
                                      here.reply.narrow(0, segment.own_sent, own), segment.bytes);
  gathered_.push_back(std::move(next));
}

void FusedReducer::take_in_oldest() {
  const InFlight next = std::move(gathered_.front());
  gathered_.pop_front();
  next.work->wait();
  Path& here = *next.path;
  with_type(here.dtype, [&]<typename T>(T) {
    const Received from = received(here, *next.segment);
    launch_.kernels<T>().first_non_finite({.blocks = here.table.data() + next.segment->first_block,
                                           .block_count = next.segment->block_count,
                                           .payload = from.payload,
                                           .stride = from.stride,
                                           .ranks = from.ranks,
                                           .flag = here.flag.data()},
                                          launch_.queue->stream());
    if (here.decoding == Decoding::on_arrival) decode<T>(here, *next.segment, here.decoded);
  });
}

template <typename T>
void FusedReducer::decode(const Path& here, const Segment& segment, const at::Tensor& into) {
  const Received from = received(here, segment);
  launch_.kernels<T>().decode({.blocks = here.table.data() + segment.first_block,
                               .block_count = segment.block_count,
                               .payload = from.payload,
                               .stride = from.stride,
                               .ranks = from.ranks,
                               .into = into.data_ptr<T>()},
                              launch_.queue->stream());
}

// Where the payloads of a segment begin, as blocks count it.
FusedReducer::Received FusedReducer::received(const Path& here, const Segment& segment) const {
  const char* all = bytes_of(here.received);
  if (has_owners()) return {all, 0, 1};
  // The ranks' messages of one segment lie behind each other.
  return {all + segment.begin * (here.size - 1), segment.total,
          static_cast<std::int32_t>(here.size)};
}

void FusedReducer::settle(Communicator&) {
  while (!gathered_.empty()) take_in_oldest();
  for (Path* here : staged_) {
    here->flag.fetch(*launch_.queue);
    if (here->measured && !here->staged_dense) {
      here->measured->fetch(here->state.eta, *launch_.queue);
    }
    if (here->saturation && !here->staged_dense) here->saturation->fetch(*launch_.queue);
  }
  staged_.clear();
}

std::optional<std::string> FusedReducer::non_finite(const Bucket& bucket) {
  const Path& here = path(bucket);
  if (host_is_behind_) launch_.queue->synchronize(Clock::now() + here.timeout);
  host_is_behind_ = false;
  return here.flag.name(bucket);
}

std::optional<std::string> FusedReducer::warning(const Bucket& bucket) const {
  const Path& here = paths_.at(bucket.index);
  if (!here.saturation || here.staged_dense) return std::nullopt;
  const auto name = here.saturation->name(bucket, here.table);
  if (!name) return std::nullopt;
  return fmt::format(
      "fp16 clamps gradients of {} at 65504, and {}; use --compressor bf16, or gradients that are "
      "smaller",
      *name,
      here.state.residual.defined() ? "what is beyond piles up in its residual"
                                    : "what is beyond is lost");
}

void FusedReducer::show_estimate(const Bucket& bucket, Bucket& view) {
  Path& here = path(bucket);
  view.coded.reset();
  view.gradient = bucket.gradient;
  if (here.staged_dense) return;
  if (here.decoding == Decoding::by_reader) {
    view.coded = here.coded;
  } else if (here.decoding == Decoding::on_arrival) {
    view.gradient = here.decoded;
  } else {
    // What a commit decodes over what it makes of no use.
    if (!here.shown.defined()) here.shown = at::zeros_like(bucket.gradient);
    view.gradient = here.shown;
    with_type(here.dtype, [&]<typename T>(T) { decode_for_show<T>(bucket, here); });
  }
}

template <typename T>
void FusedReducer::decode_for_show(const Bucket& bucket, Path& here) {
  if (here.state.tracker.defined()) {
    launch_.queue->copy(here.shown.data_ptr(), here.state.estimate.const_data_ptr(),
                        here.shown.nbytes());
  }
  for (const Segment& segment : here.segments) {
    if (here.state.tracker.defined()) {
      integrate<T>(bucket, here, segment.first_block, segment.block_count, received(here, segment),
                   here.shown);
    } else {
      decode<T>(here, segment, here.shown);
    }
  }
}

void FusedReducer::commit(Bucket& bucket) {
  Path& here = path(bucket);
  with_type(bucket.gradient.scalar_type(), [&]<typename T>(T) {
    if (here.staged_dense) {
      if (here.state.tracker.defined()) commit_dense<T>(bucket, here);
    } else {
      commit_compressed<T>(bucket, here);
    }
  });
  if (!bucket.coded) clear_absent(bucket, *launch_.queue);
}

// The trackers follow the exact gradients; what was not sent before stays to be sent.
template <typename T>
void FusedReducer::commit_dense(Bucket& bucket, Path& here) {
  const auto copy = [&](at::Tensor& to, std::int64_t begin, const at::Tensor& from,
                        std::int64_t from_begin, std::int64_t count) {
    launch_.queue->copy(to.data_ptr<T>() + begin, from.const_data_ptr<T>() + from_begin,
                        static_cast<std::size_t>(count) * sizeof(T));
  };
  const Range own = owned(here);
  for (const Slice& slice : bucket.slices) {
    if (slice.rests()) continue;
    copy(here.state.tracker, slice.offset, here.own_gradient, slice.offset, slice.numel);
    copy(here.state.estimate, slice.offset, bucket.gradient, slice.offset, slice.numel);
    const std::int64_t begin = std::max(slice.offset, own.begin);
    const std::int64_t end = std::min(slice.end(), own.end);
    if (begin < end)
      copy(here.state.mean_tracker, begin - own.begin, bucket.gradient, begin, end - begin);
  }
}

void FusedReducer::hold_state_of_absent(const Bucket& bucket, Path& here) {
  Queue& queue = *launch_.queue;
  const Range own = owned(here);
  const EControlState& state = here.state;
  hold_absent(bucket, {0, bucket.numel()}, bucket.gradient, state.residual, queue);
  hold_absent(bucket, own, here.owner_next, state.owner_residual, queue);
  hold_absent(bucket, own, here.mean_tracker_next, state.mean_tracker, queue);
  // A message that is kept means something with the scale that it was sent with only.
  const auto hold_scales = [&](const Sent& sent) {
    if (!sent.now.defined()) return;
    const auto width = static_cast<std::int64_t>(sent.now.element_size());
    for_each_run(bucket, here.table.entries(), std::mem_fn(&Slice::absent),
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
void FusedReducer::integrate(const Bucket& bucket, const Path& here, std::int64_t first_block,
                             std::int64_t block_count, const Received& from,
                             const at::Tensor& into) {
  const auto run = [&](std::int64_t first, std::int64_t count) {
    launch_.kernels<T>().integrate({.blocks = here.table.data() + first_block + first,
                                    .block_count = count,
                                    .payload = from.payload,
                                    .stride = from.stride,
                                    .ranks = from.ranks,
                                    .into = into.data_ptr<T>()},
                                   launch_.queue->stream());
  };
  if (!has_absent(bucket)) return run(0, block_count);
  const auto blocks = here.table.entries().subspan(static_cast<std::size_t>(first_block),
                                                   static_cast<std::size_t>(block_count));
  for_each_run(bucket, blocks, std::not_fn(std::mem_fn(&Slice::absent)), run);
}

template <typename T>
void FusedReducer::commit_compressed(Bucket& bucket, Path& here) {
  here.renewal.commit(bucket, here.state, *launch_.queue);
  if (has_absent(bucket)) hold_state_of_absent(bucket, here);
  if (here.state.residual.defined()) {
    std::swap(bucket.gradient, here.state.residual);
    std::swap(here.state.owner_residual, here.owner_next);
    std::swap(here.sent.now, here.sent.next);
    std::swap(here.owner_sent.now, here.owner_sent.next);
    here.residual_is_message = keeps_messages();
  }
  if (here.decoding == Decoding::by_reader) {
    bucket.coded = here.coded;
    return;
  }
  if (here.decoding == Decoding::on_arrival) {
    std::swap(bucket.gradient, here.decoded);
    return;
  }
  if (!here.state.tracker.defined()) {
    for (const Segment& segment : here.segments) decode<T>(here, segment, bucket.gradient);
    return;
  }
  integrate<T>(bucket, here, 0, here.table.size(), {.payload = bytes_of(here.messages)},
               here.state.tracker);
  std::swap(here.state.mean_tracker, here.mean_tracker_next);
  for (const Segment& segment : here.segments) {
    integrate<T>(bucket, here, segment.first_block, segment.block_count, received(here, segment),
                 here.state.estimate);
  }
  launch_.queue->copy(bucket.gradient.data_ptr(), here.state.estimate.const_data_ptr(),
                      bucket.gradient.nbytes());
  for (const Slice& slice : bucket.slices) {
    if (!slice.frozen) continue;
    launch_.queue->fill(bucket.gradient.data_ptr<T>() + slice.offset, 0,
                        static_cast<std::size_t>(slice.numel) * sizeof(T));
  }
  if (here.measured) here.measured->learn(bucket, here.state.eta, *launch_.queue);
}

void FusedReducer::rollback(Bucket& bucket) {
  Path& here = path(bucket);
  here.renewal.rollback(bucket, here.state, *launch_.queue);
}

void FusedReducer::visit(const Bucket& bucket, StateVisitor& visitor) {
  Path& here = path(bucket);
  if (here.residual_is_message) {
    form_errors(here);
    // The visitor reads them by another queue, or from the host.
    launch_.queue->synchronize(Clock::now() + here.timeout);
  }
  const EControlState& state = here.state;
  if (state.tracker.defined()) {
    visit_econtrol(bucket, state, here.measured ? EtaKind::measured : EtaKind::fixed, visitor);
  } else if (state.residual.defined()) {
    visit_residuals(bucket, state.residual, owned(here), state.owner_residual, visitor);
  }
}

std::vector<SlicePlan> FusedReducer::plan(const Bucket& bucket) const {
  return codecs_.plan(bucket);
}

}  // namespace thinwire
