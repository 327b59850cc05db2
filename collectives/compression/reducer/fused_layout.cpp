// What FusedReducer keeps from step to step: tables of blocks and buffers.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <iterator>

#include "collectives/base/error.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/reducer/fused.h"

namespace thinwire {
namespace {

constexpr std::int64_t kRawBlock = 1024;         // values; of a size that suits a GPU
constexpr std::int32_t kMostForReaders = 16384;  // values of a block

}  // namespace

// The blocks of every segment, owner by owner, in the order of the pieces, as the frozen slices are
// now.
void FusedReducer::lay_out_blocks(const Bucket& bucket, Path& here) {
  std::vector<bool> frozen;
  for (const Slice& slice : bucket.slices) frozen.push_back(slice.frozen);
  if (here.table.filled() && frozen == here.frozen) return;
  form_errors(here);
  here.frozen = frozen;

  std::vector<std::vector<Block>> of_owner;
  std::int64_t values = 0;
  for (const Chunk& chunk : here.chunks) {
    std::vector<Block>& blocks = of_owner.emplace_back();
    for (const Piece& piece : chunk.pieces) {
      const std::int64_t size =
          codecs_.compresses(bucket.slices[piece.slice]) ? piece.codec->block() : kRawBlock;
      for (std::int64_t done = 0; done < piece.count; done += size) {
        const std::int64_t count = std::min(size, piece.count - done);
        Block block;
        block.begin = piece.begin + done;
        block.count = static_cast<std::int32_t>(count);
        block.slice = static_cast<std::int32_t>(piece.slice);
        block.format =
            frozen[piece.slice] ? Format{.coding = Coding::held} : piece.codec->format(count);
        blocks.push_back(block);
        values += count;
      }
    }
  }

  const std::int64_t segments =
      std::max<std::int64_t>(1, (values + launch_.segment / 2) / launch_.segment);
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
        payload += with_type(bucket.gradient.scalar_type(), [&]<typename T>(T) {
          return payload_bytes<T>(block.format, block.count);
        });
        table.push_back(block);
      }
      segment.bytes.push_back(payload - before);
      if (owner != here.rank) continue;
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
  if (here.measured) here.measured->set_blocks(table, here.state.eta, *launch_.queue);
  here.table.fill(table, bucket.gradient, *launch_.queue);
  here.largest_block = 0;
  for (const Block& block : table) here.largest_block = std::max(here.largest_block, block.count);
  here.coded.reset();
  if (!keeps_messages() || here.sent.now.defined()) return;
  // As many as blocks, whatever is frozen.
  const auto scales = [&] {
    at::Tensor list =
        at::empty({static_cast<std::int64_t>(table.size())}, bucket.gradient.options());
    launch_.queue->fill(list.data_ptr(), 0, list.nbytes());
    return list;
  };
  here.sent = {scales(), scales()};
  if (has_owners()) here.owner_sent = {scales(), scales()};
}

void FusedReducer::form_errors(Path& here) {
  if (!here.residual_is_message) return;
  // An owner's scales of blocks that others own are 0, so those stay as they are.
  const auto form = [&](Sent& sent, at::Tensor& residual, std::int64_t chunk_begin) {
    with_type(here.dtype, [&]<typename T>(T) {
      launch_.kernels<T>().form_error({.blocks = here.table.data(),
                                       .block_count = here.table.size(),
                                       .error = residual.data_ptr<T>(),
                                       .sent = sent.now.data_ptr<T>(),
                                       .chunk_begin = chunk_begin},
                                      launch_.queue->stream());
    });
  };
  form(here.sent, here.state.residual, 0);
  if (has_owners()) form(here.owner_sent, here.state.owner_residual, owned(here).begin);
  here.residual_is_message = false;
}

// Scratch, kept from step to step.
void FusedReducer::reserve_buffers(const Bucket& bucket, Path& here) {
  const auto options = bucket.gradient.options();
  const auto reserve = [&](at::Tensor& tensor, std::int64_t count, at::ScalarType dtype) {
    if (tensor.defined() && tensor.numel() == count) return;
    tensor = at::empty({count}, options.dtype(dtype));
  };
  reserve(here.messages, here.bytes, at::kByte);
  if (!has_owners()) {
    reserve(here.received, here.bytes * here.size, at::kByte);
    return;
  }
  reserve(here.received, here.bytes, at::kByte);
  reserve(here.arrived, here.own_bytes * here.size, at::kByte);
  reserve(here.reply, here.own_bytes, at::kByte);
  const auto dtype = bucket.gradient.scalar_type();
  reserve(here.owner_next, owned(here).count(), dtype);
  if (here.state.tracker.defined()) reserve(here.mean_tracker_next, owned(here).count(), dtype);
}

// On the host what arrives is decoded while the rest is on the wire. With error feedback that takes
// a third buffer of the bucket's size, which a device, fast at decoding, does without. Trackers are
// decoded into their states, after the verdict.
FusedReducer::Decoding FusedReducer::decoding_of(const Path& here, EstimateForm form) const {
  if (!launch_.queue->on_host() || here.state.tracker.defined()) return Decoding::at_commit;
  // With an all-gather every reader would decode the messages of all ranks, and a large block would
  // go through memory after all.
  if (form == EstimateForm::coded && has_owners() && here.largest_block <= kMostForReaders) {
    return Decoding::by_reader;
  }
  return Decoding::on_arrival;
}

void FusedReducer::prepare_decoding(const Bucket& bucket, Path& here) {
  if (here.decoding == Decoding::by_reader) {
    if (here.coded) return;
    here.coded = std::make_shared<CodedGradient>();
    const auto is_sent = [](const Block& block) { return block.format.coding != Coding::held; };
    std::copy_if(here.table.data(), here.table.data() + here.table.size(),
                 std::back_inserter(here.coded->blocks), is_sent);
    std::ranges::sort(here.coded->blocks, {}, &Block::begin);
    here.coded->message = here.received;
  } else if (here.decoding == Decoding::on_arrival) {
    if (!here.state.residual.defined()) {
      here.decoded = bucket.gradient;
    } else if (!here.decoded.defined()) {
      here.decoded = at::zeros_like(bucket.gradient);
    }
  }
}

}  // namespace thinwire
