#include "collectives/transfers/direct.h"

#include <algorithm>
#include <cstring>

namespace thinwire {
namespace {

std::int64_t at(const Counts& counts, int rank) {
  return counts[static_cast<std::size_t>(rank)];
}

void copy(char* to, const char* from, std::int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

}  // namespace

void DirectTransfers::Ended::add(std::int64_t place, std::int64_t bytes) {
  if (place != up_to_) {
    beyond_.emplace_back(place, bytes);
    return;
  }
  up_to_ += bytes;
  for (auto next = beyond_.begin(); next != beyond_.end();) {
    if (next->first != up_to_) {
      ++next;
      continue;
    }
    up_to_ += next->second;
    beyond_.erase(next);
    next = beyond_.begin();
  }
}

DirectTransfers::DirectTransfers(const Operation& call, int rank, int size,
                                 const TransferOptions& options, BlockPool& pool)
    : kind_(call.kind),
      op_(call.op),
      rank_(rank),
      empty_shares_(options.empty_shares),
      pool_(pool),
      lanes_(static_cast<std::size_t>(size)) {
  char* input = nullptr;
  char* output = nullptr;
  if (call.input.defined()) {
    dtype_ = call.input.scalar_type();
    width_ = static_cast<std::int64_t>(call.input.element_size());
    input = static_cast<char*>(call.input.data_ptr());
    output = static_cast<char*>(call.output.data_ptr());
  }
  message_bytes_ = std::max(options.message_bytes / width_, std::int64_t{1}) * width_;
  switch (kind_) {
    case OperationKind::all_reduce:
      plan_finished_shares(call.output_counts, output);
      plan_sum(call.output_counts, input,
               output + at(offsets_of(call.output_counts), rank_) * width_);
      return;
    case OperationKind::reduce_scatter:
      plan_sum(call.input_counts, input, output);
      return;
    case OperationKind::all_gather:
      plan_gather(call.output_counts, input, output);
      return;
    case OperationKind::all_to_all:
      plan_all_to_all(call, input, output);
      return;
    case OperationKind::broadcast:
      plan_broadcast(call, output);
      return;
    case OperationKind::barrier:
      each_peer([&](int peer) {
        open(lane(peer).out[0], nullptr, 0, 0);
        open(lane(peer).in[0], nullptr, 0, 0);
      });
      return;
    case OperationKind::split:
      return;
  }
}

template <typename Body>
void DirectTransfers::each_peer(Body body) {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank_) body(peer);
  }
}

// Begins a stream of `bytes`, of which `ready` may go at once.
void DirectTransfers::open(Stream& stream, const char* memory, std::int64_t bytes,
                           std::int64_t ready) {
  // What is sent is only read.
  stream.memory = const_cast<char*>(memory);
  stream.total = bytes;
  stream.ready = ready;
  stream.open = bytes > 0 || empty_shares_ == EmptyShares::travel;
  if (stream.open) ++open_;
}

// First stream: each share to its owner, who keeps what came until he can add it.
void DirectTransfers::plan_sum(const Counts& counts, const char* input, char* target) {
  const Counts offsets = offsets_of(counts);
  own_ = input + at(offsets, rank_) * width_;
  target_ = target;
  share_bytes_ = at(counts, rank_) * width_;
  const auto pieces =
      static_cast<std::size_t>((share_bytes_ + message_bytes_ - 1) / message_bytes_);
  each_peer([&](int peer) {
    const std::int64_t bytes = at(counts, peer) * width_;
    open(lane(peer).out[0], input + at(offsets, peer) * width_, bytes, bytes);
    open(lane(peer).in[0], nullptr, share_bytes_, share_bytes_);
    lane(peer).terms.resize(pieces);
  });
  reduce_what_is_complete();
}

// Second stream: finished shares from their owners to everybody. Neither end of it is ready yet.
void DirectTransfers::plan_finished_shares(const Counts& counts, char* output) {
  const Counts offsets = offsets_of(counts);
  each_peer([&](int peer) {
    open(lane(peer).out[1], output + at(offsets, rank_) * width_, at(counts, rank_) * width_, 0);
    open(lane(peer).in[1], output + at(offsets, peer) * width_, at(counts, peer) * width_, 0);
  });
}

void DirectTransfers::plan_gather(const Counts& counts, const char* input, char* output) {
  const Counts offsets = offsets_of(counts);
  const std::int64_t mine = at(counts, rank_) * width_;
  copy(output + at(offsets, rank_) * width_, input, mine);
  each_peer([&](int peer) {
    const std::int64_t theirs = at(counts, peer) * width_;
    open(lane(peer).out[0], input, mine, mine);
    open(lane(peer).in[0], output + at(offsets, peer) * width_, theirs, theirs);
  });
}

void DirectTransfers::plan_all_to_all(const Operation& call, const char* input, char* output) {
  const Counts from = offsets_of(call.input_counts);
  const Counts to = offsets_of(call.output_counts);
  copy(output + at(to, rank_) * width_, input + at(from, rank_) * width_,
       at(call.output_counts, rank_) * width_);
  each_peer([&](int peer) {
    const std::int64_t mine = at(call.input_counts, peer) * width_;
    const std::int64_t theirs = at(call.output_counts, peer) * width_;
    open(lane(peer).out[0], input + at(from, peer) * width_, mine, mine);
    open(lane(peer).in[0], output + at(to, peer) * width_, theirs, theirs);
  });
}

// The root has the whole, so it only sends: each rank's share, and its own to all.
void DirectTransfers::plan_broadcast(const Operation& call, char* data) {
  const Counts& counts = call.output_counts;
  const Counts offsets = offsets_of(counts);
  char* const own = data + at(offsets, rank_) * width_;
  const std::int64_t mine = at(counts, rank_) * width_;
  if (rank_ == call.root) {
    each_peer([&](int peer) {
      const std::int64_t theirs = at(counts, peer) * width_;
      open(lane(peer).out[0], data + at(offsets, peer) * width_, theirs, theirs);
      open(lane(peer).out[1], own, mine, mine);
    });
    return;
  }
  open(lane(call.root).in[0], own, mine, mine);
  each_peer([&](int peer) {
    const std::int64_t theirs = at(counts, peer) * width_;
    if (peer != call.root) open(lane(peer).out[1], own, mine, 0);
    open(lane(peer).in[1], data + at(offsets, peer) * width_, theirs, theirs);
  });
}

std::optional<Transfers::Message> DirectTransfers::next(Stream& stream) {
  const std::int64_t bytes = std::min(message_bytes_, stream.total - stream.handed_out);
  if (!stream.open || (bytes == 0 && stream.begun) || stream.handed_out + bytes > stream.ready) {
    return {};
  }
  const Message message{stream.memory == nullptr ? nullptr : stream.memory + stream.handed_out,
                        bytes, stream.handed_out};
  stream.begun = true;
  stream.handed_out += bytes;
  return message;
}

std::optional<Transfers::Message> DirectTransfers::next_to_send(int peer, int stream) {
  return next(lane(peer).out[stream]);
}

std::optional<Transfers::Message> DirectTransfers::next_to_receive(int peer, int stream) {
  Lane& from = lane(peer);
  Stream& in = from.in[stream];
  // A result comes to where this rank's terms of it lie, so those must have left. They have when it
  // comes, as its owner has added them; the transport may learn of that later.
  if (kind_ == OperationKind::all_reduce && stream == 1) in.ready = from.out[0].ended.up_to();
  std::optional<Message> message = next(in);
  if (message && message->bytes > 0 && !from.terms.empty() && stream == 0) {
    BlockPool::Block& block = from.terms[static_cast<std::size_t>(message->place / message_bytes_)];
    block = pool_.take(message->bytes);
    message->data = block.get();
  }
  return message;
}

void DirectTransfers::end(Stream& stream, const Message& message) {
  stream.ended.add(message.place, message.bytes);
  if (stream.ended.up_to() < stream.total) return;
  stream.open = false;
  --open_;
}

void DirectTransfers::sent(int peer, int stream, const Message& message) {
  end(lane(peer).out[stream], message);
}

void DirectTransfers::received(int peer, int stream, const Message& message) {
  Stream& in = lane(peer).in[stream];
  end(in, message);
  if (stream == 1) return;
  if (kind_ == OperationKind::all_reduce || kind_ == OperationKind::reduce_scatter) {
    reduce_what_is_complete();
  } else if (kind_ == OperationKind::broadcast) {
    pass_on(in.ended.up_to());
  }
}

// Adds the pieces of this rank's share of which all terms are there.
void DirectTransfers::reduce_what_is_complete() {
  std::int64_t complete = share_bytes_;
  each_peer([&](int peer) { complete = std::min(complete, lane(peer).in[0].ended.up_to()); });
  while (reduced_ < complete) {
    const std::int64_t bytes = std::min(message_bytes_, share_bytes_ - reduced_);
    reduce_piece(reduced_, bytes);
    reduced_ += bytes;
  }
  if (kind_ == OperationKind::all_reduce) pass_on(reduced_);
}

void DirectTransfers::reduce_piece(std::int64_t begin, std::int64_t bytes) {
  const auto piece = static_cast<std::size_t>(begin / message_bytes_);
  const auto terms_of = [&](int peer) -> BlockPool::Block& { return lane(peer).terms[piece]; };
  const char* sum = own_ + begin;
  if (size() > 1) {
    char* const growing = terms_of(ring_order(rank_, 0, size())).get();
    for (int step = 1; step < size(); ++step) {
      const int next = ring_order(rank_, step, size());
      const char* terms = next == rank_ ? own_ + begin : terms_of(next).get();
      reduce_into(dtype_, op_, growing, terms, bytes / width_);
    }
    sum = growing;
  }
  copy(target_ + begin, sum, bytes);
  each_peer([&](int peer) { pool_.give_back(std::move(terms_of(peer)), bytes); });
}

// The first `ready` bytes of this rank's share may go to everybody.
void DirectTransfers::pass_on(std::int64_t ready) {
  each_peer([&](int peer) {
    Stream& out = lane(peer).out[1];
    out.ready = std::min(ready, out.total);
  });
}

}  // namespace thinwire
