// What PipelinedReducer makes of a bucket's layout: the table of blocks, segments, and buffers.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "collectives/base/error.h"
#include "collectives/compression/codec/codec.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/codings/list.h"
#include "collectives/compression/feedback/eta.h"
#include "collectives/compression/reducer/pipelined.h"

namespace thinwire {
namespace {

constexpr std::int64_t kRawBlock = 1024;         // values; of a size that suits a GPU
constexpr std::int32_t kMostForReaders = 16384;  // values of a block

}  // namespace

void PipelinedReducer::require_possible(const Bucket& bucket, const Layout& layout) const {
  codecs_.of(bucket, layout);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (layout.of(i).coding.is_default() || codecs_.compresses(slice)) continue;
    throw UsageError(fmt::format(
        "the layout of {} sets numbers of a coding, but it goes uncompressed; leave them out",
        slice.name));
  }
}

void PipelinedReducer::relayout(const Bucket& bucket) {
  adopt_layout(bucket, state_of(bucket));
}

void PipelinedReducer::adopt_layout(const Bucket& bucket, BucketState& here) {
  if (here.table.filled() && here.layout.is(bucket.layout)) return;
  form_errors(here);
  bring_out_of_order(bucket, here);
  const PayloadBuffers& buffers = here.buffers;
  here.before = {here.sent.now,   here.sent.next,  here.owner_sent.now, here.owner_sent.next,
                 buffers.message, buffers.arrived, buffers.reply,       buffers.received};
  here.layout = bucket.layout;
  for (at::Tensor* state : {&here.state.residual, &here.state.tracker, &here.state.estimate}) {
    clear_gone(bucket, *state, {0, bucket.numel()}, *device_.queue);
  }
  for (at::Tensor* state : {&here.state.owner_residual, &here.state.mean_tracker}) {
    clear_gone(bucket, *state, owned(here), *device_.queue);
  }
  count_live(bucket, here.chunks);
  here.order.set(bucket, here.chunks, *device_.queue);
  set_fixed_eta(bucket, here);
  lay_out_segments(bucket, here);
}

// Top-k's weight follows the density, which a layout may change.
void PipelinedReducer::set_fixed_eta(const Bucket& bucket, BucketState& here) {
  if (!here.state.eta.defined() || here.measured) return;
  const CodecOfSlice codecs = codecs_.of(bucket);
  with_type(here.dtype, [&]<typename T>(T) {
    const auto bytes = codecs.size() * sizeof(T);
    const auto on_host = device_.queue->host_memory(bytes);
    for (std::size_t i = 0; i < codecs.size(); ++i) {
      const Codec* codec = codecs_.compresses(bucket.slices[i]) ? codecs[i].get() : codecs_.codec();
      static_cast<T*>(on_host.get())[i] =
          static_cast<T>(fixed_eta(options_.feedback.eta, codec).value_or(0));
    }
    device_.queue->copy(here.state.eta.data_ptr(), on_host.get(), bytes);
    here.eta_on_host = on_host;
  });
}

void PipelinedReducer::bring_into_order(const Bucket& bucket, BucketState& here) {
  if (here.state_is_in_order || here.order.is_natural()) return;
  for (at::Tensor* state : {&here.state.residual, &here.state.tracker, &here.state.estimate}) {
    here.order.apply(*state, {0, bucket.numel()}, device_);
  }
  for (at::Tensor* state : {&here.state.owner_residual, &here.state.mean_tracker}) {
    here.order.apply(*state, owned(here), device_);
  }
  here.state_is_in_order = true;
}

void PipelinedReducer::bring_out_of_order(const Bucket& bucket, BucketState& here) {
  if (!here.state_is_in_order) return;
  for (at::Tensor* state : {&here.state.residual, &here.state.tracker, &here.state.estimate}) {
    here.order.revert(*state, {0, bucket.numel()}, device_);
  }
  for (at::Tensor* state : {&here.state.owner_residual, &here.state.mean_tracker}) {
    here.order.revert(*state, owned(here), device_);
  }
  here.state_is_in_order = false;
}

std::vector<std::vector<Block>> PipelinedReducer::blocks_of(const Bucket& bucket,
                                                            const BucketState& here) const {
  const CodecOfSlice codecs = codecs_.of(bucket);
  std::vector<std::vector<Block>> of_owner;
  for (const Chunk& chunk : here.chunks) {
    std::vector<Block>& blocks = of_owner.emplace_back();
    for (const Piece& piece : chunk.pieces) {
      const Codec& codec = *codecs[piece.slice];
      const std::int64_t size =
          codecs_.compresses(bucket.slices[piece.slice]) ? codec.block() : kRawBlock;
      const auto add = [&](std::int64_t begin, std::int64_t end, const auto& format_of) {
        for (std::int64_t done = begin; done < end; done += size) {
          const std::int64_t count = std::min(size, end - done);
          blocks.push_back({.begin = piece.begin + done,
                            .count = static_cast<std::int32_t>(count),
                            .slice = static_cast<std::int32_t>(piece.slice),
                            .format = format_of(count)});
        }
      };
      add(0, piece.live, [&](std::int64_t count) { return codec.format(count); });
      add(piece.live, piece.count, [](std::int64_t) { return Format{.coding = Coding::held}; });
    }
  }
  return of_owner;
}

// The blocks of every segment, owner by owner.
void PipelinedReducer::lay_out_segments(const Bucket& bucket, BucketState& here) {
  const std::vector<std::vector<Block>> of_owner = blocks_of(bucket, here);
  std::int64_t values = 0;
  for (const Chunk& chunk : here.chunks) {
    for (const Piece& piece : chunk.pieces) values += piece.count;
  }
  const std::int64_t segments =
      std::max<std::int64_t>(1, (values + device_.segment / 2) / device_.segment);
  std::vector<Block> table;
  here.segments.clear();
  std::int64_t payload = 0;
  std::int64_t own_sent = 0;
  for (std::int64_t s = 0; s < segments; ++s) {
    Segment segment;
    segment.first_block = static_cast<std::int64_t>(table.size());
    segment.begin = payload;
    segment.own_sent = own_sent;
    for (std::size_t owner = 0; owner < of_owner.size(); ++owner) {
      const auto& blocks = of_owner[owner];
      const auto count = static_cast<std::int64_t>(blocks.size());
      const std::int64_t first = static_cast<std::int64_t>(table.size());
      const std::int64_t before = payload;
      for (std::int64_t b = count * s / segments; b < count * (s + 1) / segments; ++b) {
        Block block = blocks[static_cast<std::size_t>(b)];
        block.payload = payload;
        payload += with_type(
            here.dtype, [&]<typename T>(T) { return payload_bytes<T>(block.format, block.count); });
        table.push_back(block);
      }
      segment.bytes.push_back(payload - before);
      if (owner != here.owner) continue;
      segment.own_first_block = first;
      segment.own_block_count = static_cast<std::int64_t>(table.size()) - first;
      segment.own_begin = before;
      own_sent += payload - before;
    }
    segment.block_count = static_cast<std::int64_t>(table.size()) - segment.first_block;
    segment.total = payload - segment.begin;
    here.segments.push_back(std::move(segment));
  }
  here.bytes = payload;
  here.own_bytes = own_sent;
  if (here.measured) here.measured->set_blocks(table, here.state.eta, *device_.queue);
  here.table.fill(table, bucket.gradient, *device_.queue);
  here.largest_block = 0;
  for (const Block& block : table) here.largest_block = std::max(here.largest_block, block.count);
  here.undecoded.reset();
  if (!keeps_messages()) return;
  // One per block. The residuals are what was not sent, which the scale 0 says.
  const auto scales = [&] {
    at::Tensor list =
        at::empty({static_cast<std::int64_t>(table.size())}, bucket.gradient.options());
    device_.queue->fill(list.data_ptr(), 0, list.nbytes());
    return list;
  };
  here.sent = {scales(), scales()};
  if (has_owners()) here.owner_sent = {scales(), scales()};
}

void PipelinedReducer::form_errors(BucketState& here) {
  if (!here.residual_is_message) return;
  // An owner's scales of blocks that others own are 0, so those stay as they are.
  const auto form = [&](Sent& sent, at::Tensor& residual, std::int64_t chunk_begin) {
    with_type(here.dtype, [&]<typename T>(T) {
      device_.kernels<T>().form_error({.blocks = here.table.data(),
                                       .block_count = here.table.size(),
                                       .error = residual.data_ptr<T>(),
                                       .sent = sent.now.data_ptr<T>(),
                                       .chunk_begin = chunk_begin},
                                      device_.queue->executor());
    });
  };
  form(here.sent, here.state.residual, 0);
  if (has_owners()) form(here.owner_sent, here.state.owner_residual, owned(here).begin);
  here.residual_is_message = false;
}

// Scratch, kept from step to step.
void PipelinedReducer::reserve_buffers(const Bucket& bucket, BucketState& here) {
  reserve_bytes(here.buffers.message, here.bytes, bucket.gradient);
  exchange_->reserve(here.buffers, here.bytes, here.own_bytes, here.size);
  if (!has_owners()) return;
  const auto reserve = [&](at::Tensor& tensor) {
    if (tensor.defined()) return;
    tensor = at::empty({owned(here).count()}, bucket.gradient.options());
  };
  reserve(here.owner_next);
  if (here.state.tracker.defined()) reserve(here.mean_tracker_next);
}

// On the host what arrives is decoded while the rest is on the wire. With error feedback that takes
// a third buffer of the bucket's size, which a device, fast at decoding, does without. Trackers are
// decoded into their states, after the verdict.
PipelinedReducer::Decoding PipelinedReducer::decoding_of(const BucketState& here,
                                                         EstimateForm form) const {
  if (!device_.queue->on_host() || here.state.tracker.defined()) return Decoding::at_commit;
  // With an all-gather every reader would decode the messages of all ranks, a large block would go
  // through memory after all, and readers know nothing of an order.
  if (form == EstimateForm::undecoded && has_owners() && here.largest_block <= kMostForReaders &&
      here.order.is_natural()) {
    return Decoding::by_reader;
  }
  return Decoding::on_arrival;
}

void PipelinedReducer::prepare_decoding(const Bucket& bucket, BucketState& here) {
  if (here.decoding == Decoding::by_reader) {
    if (here.undecoded) return;
    here.undecoded = std::make_shared<UndecodedEstimate>();
    const auto is_sent = [](const Block& block) { return block.format.coding != Coding::held; };
    const auto table = here.table.entries();
    std::copy_if(table.begin(), table.end(), std::back_inserter(here.undecoded->blocks), is_sent);
    std::ranges::sort(here.undecoded->blocks, {}, &Block::begin);
    here.undecoded->message = here.buffers.received;
  } else if (here.decoding == Decoding::on_arrival) {
    if (!here.state.residual.defined()) {
      here.decoded = bucket.gradient;
    } else if (!here.decoded.defined()) {
      here.decoded = at::zeros_like(bucket.gradient);
    }
  }
}

}  // namespace thinwire
