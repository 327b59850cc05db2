#include "collectives/sockets/exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "collectives/base/error.h"

namespace thinwire::sockets {
namespace {

// Blocks kept for the next sum.
constexpr std::size_t kSpareBlocks = 16;

std::int64_t share_of(const Counts& counts, int rank) {
  return counts[static_cast<std::size_t>(rank)];
}

void copy(char* to, const char* from, std::int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

const char* name(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return "sum";
    case ReduceOp::min:
      return "min";
    case ReduceOp::max:
      return "max";
  }
  return "unknown operation";
}

// "all_reduce (sum) of Float"
std::string describe(const FrameHeader& header) {
  const auto kind = static_cast<OperationKind>(header.operation);
  if (kind == OperationKind::barrier) return name(kind);
  const char* dtype = toString(static_cast<at::ScalarType>(header.dtype));
  if (kind == OperationKind::all_reduce || kind == OperationKind::reduce_scatter) {
    return fmt::format("{} ({}) of {}", name(kind), name(static_cast<ReduceOp>(header.reduce_op)),
                       dtype);
  }
  return fmt::format("{} of {}", name(kind), dtype);
}

}  // namespace

BlockPool::Block BlockPool::take(std::int64_t bytes) {
  if (bytes == block_bytes_ && !free_.empty()) {
    Block block = std::move(free_.back());
    free_.pop_back();
    return block;
  }
  return std::make_unique_for_overwrite<char[]>(static_cast<std::size_t>(bytes));
}

void BlockPool::give_back(Block block, std::int64_t bytes) {
  if (bytes == block_bytes_ && free_.size() < kSpareBlocks) free_.push_back(std::move(block));
}

Exchange::Exchange(OperationId id, Operation call, int rank, int size, std::int64_t chunk_bytes,
                   BlockPool& pool)
    : id_(id),
      call_(std::move(call)),
      rank_(rank),
      pool_(pool),
      lanes_(static_cast<std::size_t>(size)) {
  if (!call_.input.defined()) return;
  width_ = static_cast<std::int64_t>(call_.input.element_size());
  piece_bytes_ = std::max(chunk_bytes / width_, std::int64_t{1}) * width_;
  switch (call_.kind) {
    case OperationKind::all_reduce: {
      char* own = out() + share_of(offsets_of(call_.output_counts), rank_) * width_;
      gather_shares(call_.output_counts);
      plan_sum(call_.output_counts, own);
      return;
    }
    case OperationKind::reduce_scatter:
      plan_sum(call_.input_counts, out());
      return;
    case OperationKind::all_gather:
      plan_all_gather();
      return;
    case OperationKind::all_to_all:
      plan_all_to_all();
      return;
    case OperationKind::broadcast:
      plan_broadcast();
      return;
    case OperationKind::barrier:
    case OperationKind::split:
      return;
  }
}

template <typename Body>
void Exchange::each_peer(Body body) {
  for (int member = 0; member < size(); ++member) {
    if (member != rank_) body(member);
  }
}

void Exchange::send(int member, int stream, const char* from, std::int64_t bytes) {
  Outgoing& outgoing = lane(member).out[stream];
  outgoing.from = from;
  outgoing.total = bytes;
}

void Exchange::receive(int member, int stream, char* to, std::int64_t bytes) {
  Incoming& incoming = lane(member).in[stream];
  incoming.to = to;
  incoming.total = bytes;
}

// First stream: each share to its owner, who keeps the pieces of all until he can add them.
void Exchange::plan_sum(const Counts& counts, char* target) {
  const Counts offsets = offsets_of(counts);
  own_ = in() + share_of(offsets, rank_) * width_;
  target_ = target;
  share_bytes_ = share_of(counts, rank_) * width_;
  const auto pieces = static_cast<std::size_t>((share_bytes_ + piece_bytes_ - 1) / piece_bytes_);
  each_peer([&](int peer) {
    send(peer, 0, in() + share_of(offsets, peer) * width_, share_of(counts, peer) * width_);
    lane(peer).out[0].ready = lane(peer).out[0].total;
    receive(peer, 0, nullptr, share_bytes_);
    lane(peer).in[0].blocks.resize(pieces);
  });
  reduce_what_is_complete();
}

// Second stream: finished shares from their owners to everybody. In all_reduce a result may come
// to where this rank's own input was: its owner can only have made it after he had that input.
void Exchange::gather_shares(const Counts& counts) {
  const Counts offsets = offsets_of(counts);
  each_peer([&](int peer) {
    send(peer, 1, out() + share_of(offsets, rank_) * width_, share_of(counts, rank_) * width_);
    receive(peer, 1, out() + share_of(offsets, peer) * width_, share_of(counts, peer) * width_);
  });
}

void Exchange::plan_all_gather() {
  const Counts offsets = offsets_of(call_.output_counts);
  const std::int64_t bytes = share_of(call_.output_counts, rank_) * width_;
  copy(out() + share_of(offsets, rank_) * width_, in(), bytes);
  each_peer([&](int peer) {
    send(peer, 0, in(), bytes);
    lane(peer).out[0].ready = bytes;
    receive(peer, 0, out() + share_of(offsets, peer) * width_,
            share_of(call_.output_counts, peer) * width_);
  });
}

void Exchange::plan_all_to_all() {
  const Counts from = offsets_of(call_.input_counts);
  const Counts to = offsets_of(call_.output_counts);
  copy(out() + share_of(to, rank_) * width_, in() + share_of(from, rank_) * width_,
       share_of(call_.output_counts, rank_) * width_);
  each_peer([&](int peer) {
    send(peer, 0, in() + share_of(from, peer) * width_,
         share_of(call_.input_counts, peer) * width_);
    lane(peer).out[0].ready = lane(peer).out[0].total;
    receive(peer, 0, out() + share_of(to, peer) * width_,
            share_of(call_.output_counts, peer) * width_);
  });
}

// The root scatters shares, and every rank passes its own on to those that lack it.
void Exchange::plan_broadcast() {
  const Counts offsets = offsets_of(call_.output_counts);
  gather_shares(call_.output_counts);
  if (rank_ != call_.root) {
    send(call_.root, 1, nullptr, 0);
    receive(call_.root, 0, out() + share_of(offsets, rank_) * width_,
            share_of(call_.output_counts, rank_) * width_);
    return;
  }
  each_peer([&](int peer) {
    receive(peer, 1, nullptr, 0);
    send(peer, 0, in() + share_of(offsets, peer) * width_,
         share_of(call_.output_counts, peer) * width_);
    lane(peer).out[0].ready = lane(peer).out[0].total;
  });
  pass_on(share_of(call_.output_counts, rank_) * width_);
}

FrameHeader Exchange::header(int member, FrameKind kind) const {
  FrameHeader header;
  header.id = id_;
  header.kind = kind;
  header.total =
      static_cast<std::uint64_t>(lane(member).out[kind == FrameKind::second ? 1 : 0].total);
  header.operation = static_cast<std::uint8_t>(call_.kind);
  header.reduce_op = static_cast<std::uint8_t>(call_.op);
  header.dtype = call_.input.defined() ? static_cast<std::uint8_t>(call_.input.scalar_type())
                                       : std::uint8_t{0};
  return header;
}

std::string Exchange::mismatch(int member, const FrameHeader& theirs) const {
  const FrameHeader ours = header(member, theirs.kind);
  if (ours.operation != theirs.operation || ours.reduce_op != theirs.reduce_op ||
      ours.dtype != theirs.dtype) {
    return fmt::format("called {} where {} was expected", describe(theirs), describe(ours));
  }
  const Incoming& incoming = lane(member).in[theirs.kind == FrameKind::second ? 1 : 0];
  if (theirs.total != static_cast<std::uint64_t>(incoming.total)) {
    return fmt::format("sent {} bytes where {} were expected in {}", theirs.total, incoming.total,
                       call_.describe());
  }
  if (theirs.bytes > static_cast<std::uint64_t>(incoming.missing())) {
    return fmt::format("sent more than the {} bytes of {}", incoming.total, call_.describe());
  }
  return {};
}

Exchange::Room Exchange::room(int member, int stream) {
  Incoming& incoming = lane(member).in[stream];
  if (incoming.blocks.empty()) return {incoming.to + incoming.received, incoming.missing()};
  const std::int64_t piece = incoming.received / piece_bytes_;
  const std::int64_t within = incoming.received % piece_bytes_;
  const std::int64_t bytes = std::min(piece_bytes_, incoming.total - piece * piece_bytes_);
  BlockPool::Block& block = incoming.blocks[static_cast<std::size_t>(piece)];
  if (!block) block = pool_.take(bytes);
  return {block.get() + within, bytes - within};
}

void Exchange::arrived(int member, int stream, std::int64_t bytes) {
  Incoming& incoming = lane(member).in[stream];
  incoming.received += bytes;
  if (stream == 1) return;
  if (!incoming.blocks.empty()) {
    if (incoming.missing() == 0 || incoming.received / piece_bytes_ * piece_bytes_ > reduced_) {
      reduce_what_is_complete();
    }
  } else if (call_.kind == OperationKind::broadcast) {
    pass_on(incoming.missing() == 0 ? incoming.total
                                    : incoming.received / piece_bytes_ * piece_bytes_);
  }
}

void Exchange::reduce_what_is_complete() {
  std::int64_t complete = share_bytes_;
  each_peer([&](int peer) { complete = std::min(complete, lane(peer).in[0].received); });
  while (reduced_ < complete) {
    const std::int64_t bytes = std::min(piece_bytes_, share_bytes_ - reduced_);
    if (reduced_ + bytes > complete) break;
    reduce_piece(reduced_, bytes);
    reduced_ += bytes;
  }
  if (call_.kind == OperationKind::all_reduce) pass_on(reduced_);
}

void Exchange::reduce_piece(std::int64_t begin, std::int64_t bytes) {
  const auto piece = static_cast<std::size_t>(begin / piece_bytes_);
  const auto block = [&](int member) -> BlockPool::Block& {
    return lane(member).in[0].blocks[piece];
  };
  const char* sum = own_ + begin;
  if (size() > 1) {
    char* const growing = block(in_ring(rank_, 0, size())).get();
    for (int step = 1; step < size(); ++step) {
      const int member = in_ring(rank_, step, size());
      const char* terms = member == rank_ ? own_ + begin : block(member).get();
      reduce_into(call_.input.scalar_type(), call_.op, growing, terms, bytes / width_);
    }
    sum = growing;
  }
  copy(target_ + begin, sum, bytes);
  each_peer([&](int peer) { pool_.give_back(std::move(block(peer)), bytes); });
}

// The first `ready` bytes of this rank's share may go to everybody.
void Exchange::pass_on(std::int64_t ready) {
  each_peer([&](int peer) {
    Outgoing& outgoing = lane(peer).out[1];
    outgoing.ready = std::min(ready, outgoing.total);
  });
}

bool Exchange::needs_to_send(int member) const {
  const Lane& to = lane(member);
  return to.out[0].claimed < to.out[0].total || to.out[1].claimed < to.out[1].total;
}

bool Exchange::needs_to_receive(int member) const {
  const Lane& from = lane(member);
  if (call_.kind == OperationKind::barrier && !from.call_received) return true;
  return from.in[0].missing() > 0 || from.in[1].missing() > 0;
}

bool Exchange::exchanged() const {
  for (int member = 0; member < size(); ++member) {
    if (member == rank_) continue;
    if (!lane(member).call_sent || needs_to_send(member) || needs_to_receive(member)) return false;
  }
  return true;
}

}  // namespace thinwire::sockets
