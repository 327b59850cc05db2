#include "collectives/compression/reducer/fused.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <numeric>

#include "collectives/compression/codec/typed.h"
#include "runtime/base/error.h"

namespace thinwire {
namespace {

constexpr std::int64_t kRawBlock = 1024;  // values; of a size that suits a GPU

std::int64_t sum(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

char* bytes_of(const at::Tensor& tensor) {
  return static_cast<char*>(tensor.data_ptr());
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
  here.chunks = cut_into_chunks(bucket, codecs_.of(bucket), size);
  here.rank = static_cast<std::size_t>(rank);
  const auto options = bucket.gradient.options();
  if (options_.feedback.kind == FeedbackKind::error_feedback) {
    here.residual = at::zeros_like(bucket.gradient);
    here.owner_residual = at::zeros({here.chunks[here.rank].range().count()}, options);
  }
  here.flag = at::zeros({1}, options.dtype(at::kInt));
  here.flag_on_host = launch_.queue->host_memory(sizeof(std::int32_t));
  paths_.insert_or_assign(bucket.index, std::move(here));
}

// The blocks of every chunk in the order of its pieces, as the frozen slices are now.
void FusedReducer::lay_out_blocks(const Bucket& bucket, Path& here) {
  std::vector<bool> frozen;
  for (const Slice& slice : bucket.slices) frozen.push_back(slice.frozen);
  if (here.table.filled() && frozen == here.frozen) return;
  here.frozen = frozen;
  std::vector<Block> blocks;
  here.first_block = {0};
  here.bytes.clear();
  const auto dtype = bucket.gradient.scalar_type();
  std::int64_t payload = 0;
  for (const Chunk& chunk : here.chunks) {
    const std::int64_t chunk_payload = payload;
    for (const Piece& piece : chunk.pieces) {
      const bool coded = codecs_.compresses(bucket.slices[piece.slice]);
      Block block;
      block.slice = static_cast<std::int32_t>(piece.slice);
      const std::int64_t size = coded ? piece.codec->block() : kRawBlock;
      for (std::int64_t done = 0; done < piece.count; done += size) {
        const std::int64_t count = std::min(size, piece.count - done);
        block.begin = piece.begin + done;
        block.count = static_cast<std::int32_t>(count);
        block.payload = payload;
        block.format =
            frozen[piece.slice] ? Format{.coding = Coding::held} : piece.codec->format(count);
        blocks.push_back(block);
        if (!frozen[piece.slice]) payload += piece.codec->payload_bytes(count, dtype);
      }
    }
    here.bytes.push_back(payload - chunk_payload);
    here.first_block.push_back(static_cast<std::int64_t>(blocks.size()));
  }
  here.table.fill(std::move(blocks), bucket.gradient, *launch_.queue);
}

// Scratch for the payloads, kept from step to step.
void FusedReducer::reserve_buffers(const Bucket& bucket, Path& here) {
  const auto options = bucket.gradient.options();
  const auto reserve = [&](at::Tensor& tensor, std::int64_t bytes) {
    if (tensor.defined() && tensor.numel() == bytes) return;
    tensor = at::empty({bytes}, options.dtype(at::kByte));
  };
  const std::int64_t mine = here.bytes[here.rank];
  reserve(here.messages, sum(here.bytes));
  reserve(here.received, sum(here.bytes));
  reserve(here.arrived, mine * static_cast<std::int64_t>(here.chunks.size()));
  reserve(here.reply, mine);
  if (!here.owner_next.defined()) {
    here.owner_next = at::zeros({here.chunks[here.rank].range().count()}, options);
  }
}

void FusedReducer::stage(Bucket& bucket, Communicator& communicator, const StepContext& step) {
  Path& here = path(bucket);
  here.timeout = communicator.timeout();
  here.staged_dense =
      step.transmission == Transmission::dense || options_.exchange == ExchangeKind::all_reduce;
  host_is_behind_ = true;
  lay_out_blocks(bucket, here);
  // Above every slice's index; kernels take the minimum.
  launch_.queue->fill(here.flag.data_ptr(), 0x7f, sizeof(std::int32_t));
  with_type(bucket.gradient.scalar_type(),
            [&]<typename T>(T) { stage_typed<T>(bucket, here, communicator); });
  launch_.queue->copy(here.flag_on_host.get(), here.flag.const_data_ptr(), sizeof(std::int32_t));
}

template <typename T>
void FusedReducer::stage_typed(Bucket& bucket, Path& here, Communicator& communicator) {
  const Kernels<T>& run = launch_.kernels<T>();
  const StreamHandle stream = launch_.queue->stream();
  auto* flag = here.flag.data_ptr<std::int32_t>();
  if (here.staged_dense) {
    communicator.all_reduce(bucket.gradient, ReduceOp::sum)->wait();
    run.mean_and_check({.blocks = here.table.data(),
                        .block_count = here.table.size(),
                        .gradient = bucket.gradient.data_ptr<T>(),
                        .ranks = communicator.size(),
                        .flag = flag},
                       stream);
    return;
  }

  reserve_buffers(bucket, here);
  const bool feedback = here.residual.defined();
  run.encode({.blocks = here.table.data(),
              .block_count = here.table.size(),
              .gradient = bucket.gradient.data_ptr<T>(),
              .residual = {.error = feedback ? here.residual.const_data_ptr<T>() : nullptr},
              .payload = bytes_of(here.messages)},
             stream);
  const std::int64_t mine = here.bytes[here.rank];
  communicator
      .all_to_all(here.arrived, here.messages, Counts(here.chunks.size(), mine), here.bytes)
      ->wait();
  const std::int64_t first = here.first_block[here.rank];
  run.owner_reduce(
      {.blocks = here.table.data() + first,
       .block_count = here.chunk_blocks(here.rank),
       .chunk_begin = here.chunks[here.rank].range().begin,
       .payload_begin = std::accumulate(here.bytes.begin(),
                                        here.bytes.begin() + static_cast<std::ptrdiff_t>(here.rank),
                                        std::int64_t{0}),
       .arrived = bytes_of(here.arrived),
       .stride = mine,
       .ranks = communicator.size(),
       .residual = {.error = feedback ? here.owner_residual.const_data_ptr<T>() : nullptr},
       .owner_next = here.owner_next.data_ptr<T>(),
       .reply = bytes_of(here.reply)},
      stream);
  communicator.all_gather(here.received, here.reply, here.bytes)->wait();
  run.first_non_finite({.blocks = here.table.data(),
                        .block_count = here.table.size(),
                        .payload = bytes_of(here.received),
                        .flag = flag},
                       stream);
}

void FusedReducer::settle(Communicator&) {}

std::optional<std::string> FusedReducer::non_finite(const Bucket& bucket) {
  Path& here = path(bucket);
  if (host_is_behind_) launch_.queue->synchronize(Clock::now() + here.timeout);
  host_is_behind_ = false;
  const auto slice = static_cast<std::size_t>(*static_cast<std::int32_t*>(here.flag_on_host.get()));
  if (slice >= bucket.slices.size()) return std::nullopt;
  return bucket.slices[slice].name;
}

void FusedReducer::commit(Bucket& bucket) {
  Path& here = path(bucket);
  if (here.staged_dense) return;
  if (here.residual.defined()) {
    std::swap(bucket.gradient, here.residual);
    std::swap(here.owner_residual, here.owner_next);
  }
  with_type(bucket.gradient.scalar_type(), [&]<typename T>(T) {
    launch_.kernels<T>().decode({.blocks = here.table.data(),
                                 .block_count = here.table.size(),
                                 .payload = bytes_of(here.received),
                                 .into = bucket.gradient.data_ptr<T>()},
                                launch_.queue->stream());
  });
}

void FusedReducer::rollback(Bucket&) {}

void FusedReducer::visit(const Bucket& bucket, StateVisitor& visitor) {
  const Path& here = path(bucket);
  if (!here.residual.defined()) return;
  visit_residuals(bucket, here.residual, here.chunks[here.rank].range(), here.owner_residual,
                  visitor);
}

std::vector<SlicePlan> FusedReducer::plan(const Bucket& bucket) const {
  return codecs_.plan(bucket);
}

}  // namespace thinwire
