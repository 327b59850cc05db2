#include "collectives/sockets/pending_operation.h"

#include <fmt/format.h>

#include <algorithm>

#include "collectives/base/error.h"

namespace thinwire::sockets {
namespace {

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

PendingOperation::PendingOperation(OperationId id, Operation call, int rank, int size,
                                   std::int64_t chunk_bytes, BlockPool& pool)
    : id_(id),
      call_(std::move(call)),
      rank_(rank),
      lanes_(static_cast<std::size_t>(size)),
      // A peer has one connection, on which nothing may wait that holds up other operations: so
      // sums go straight to the owners of their shares. Calls are told in frames of their own.
      transfers_(plan_transfers(call_, rank, size, {.message_bytes = chunk_bytes}, pool)) {}

FrameHeader PendingOperation::header(int member, FrameKind kind) const {
  FrameHeader header;
  header.id = id_;
  header.kind = kind;
  header.total = static_cast<std::uint64_t>(transfers_->bytes_to_send(member, stream_of(kind)));
  header.operation = static_cast<std::uint8_t>(call_.kind);
  header.reduce_op = static_cast<std::uint8_t>(call_.op);
  header.dtype = call_.input.defined() ? static_cast<std::uint8_t>(call_.input.scalar_type())
                                       : std::uint8_t{0};
  return header;
}

std::string PendingOperation::mismatch(int member, const FrameHeader& theirs) const {
  const FrameHeader ours = header(member, theirs.kind);
  if (ours.operation != theirs.operation || ours.reduce_op != theirs.reduce_op ||
      ours.dtype != theirs.dtype) {
    return fmt::format("called {} where {} was expected", describe(theirs), describe(ours));
  }
  const int stream = stream_of(theirs.kind);
  const std::int64_t expected = transfers_->bytes_to_receive(member, stream);
  if (theirs.total != static_cast<std::uint64_t>(expected)) {
    return fmt::format("sent {} bytes where {} were expected in {}", theirs.total, expected,
                       call_.describe());
  }
  if (theirs.bytes > static_cast<std::uint64_t>(missing(member, stream))) {
    return fmt::format("sent more than the {} bytes of {}", expected, call_.describe());
  }
  return {};
}

const Transfers::Message* PendingOperation::sendable(int member, int stream) {
  auto& next = lane(member).streams[stream].to_send;
  if (!next) next = transfers_->next_to_send(member, stream);
  return next ? &*next : nullptr;
}

Transfers::Message PendingOperation::take_sendable(int member, int stream) {
  auto& next = lane(member).streams[stream].to_send;
  const Transfers::Message message = *next;
  next.reset();
  return message;
}

void PendingOperation::sent(int member, int stream, const Transfers::Message& message) {
  lane(member).streams[stream].sent += message.bytes;
  transfers_->sent(member, stream, message);
}

PendingOperation::Room PendingOperation::room(int member, int which) {
  Stream& stream = lane(member).streams[which];
  if (!stream.to_fill) stream.to_fill = transfers_->next_to_receive(member, which);
  if (!stream.to_fill) return {};
  return {stream.to_fill->data + stream.filled, stream.to_fill->bytes - stream.filled};
}

void PendingOperation::arrived(int member, int which, std::int64_t bytes) {
  Stream& stream = lane(member).streams[which];
  stream.filled += bytes;
  stream.received += bytes;
  if (stream.filled < stream.to_fill->bytes) return;
  const Transfers::Message message = *stream.to_fill;
  stream.to_fill.reset();
  stream.filled = 0;
  transfers_->received(member, which, message);
}

std::int64_t PendingOperation::unsent(int member, int stream) const {
  return transfers_->bytes_to_send(member, stream) - lane(member).streams[stream].sent;
}

std::int64_t PendingOperation::missing(int member, int stream) const {
  return transfers_->bytes_to_receive(member, stream) - lane(member).streams[stream].received;
}

bool PendingOperation::needs_to_send(int member) const {
  return unsent(member, 0) > 0 || unsent(member, 1) > 0;
}

bool PendingOperation::needs_to_receive(int member) const {
  if (call_.kind == OperationKind::barrier && !call_received(member)) return true;
  return missing(member, 0) > 0 || missing(member, 1) > 0;
}

bool PendingOperation::complete() const {
  for (int member = 0; member < size(); ++member) {
    if (member == rank_) continue;
    if (!call_sent(member) || needs_to_send(member) || needs_to_receive(member)) return false;
  }
  return true;
}

}  // namespace thinwire::sockets
