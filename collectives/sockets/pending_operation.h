// An operation in flight over sockets: its plan of transfers, and how far each peer has come.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/operation.h"
#include "collectives/sockets/frame.h"
#include "collectives/transfers/transfers.h"

namespace thinwire::sockets {

// Without the network. `rank` and `member` are places in the group. Not thread-safe.
class PendingOperation {
 public:
  // `pool` must outlive it.
  PendingOperation(OperationId id, Operation call, int rank, int size, std::int64_t chunk_bytes,
                   BlockPool& pool);

  const OperationId& id() const { return id_; }
  const Operation& call() const { return call_; }
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(lanes_.size()); }

  bool call_sent(int member) const { return lane(member).call_sent; }
  bool call_received(int member) const { return lane(member).call_received; }
  void note_call_sent(int member) { lane(member).call_sent = true; }
  void note_call_received(int member) { lane(member).call_received = true; }

  // A header without bytes for this stream to `member`.
  FrameHeader header(int member, FrameKind kind) const;
  // What is wrong with a frame from `member`: empty, or what it did where what was expected.
  std::string mismatch(int member, const FrameHeader& header) const;

  // The next message of a stream that may be sent to `member`, or null. It stays the next one until
  // it is taken.
  const Transfers::Message* sendable(int member, int stream);
  Transfers::Message take_sendable(int member, int stream);
  // A message that was taken has left.
  void sent(int member, int stream, const Transfers::Message& message);

  struct Room {
    char* to = nullptr;
    std::int64_t bytes = 0;
  };
  // Where the next bytes of a stream from `member` go; in one piece, so possibly less than wanted.
  // None: there cannot be such bytes yet.
  Room room(int member, int stream);
  // `bytes` of them have come.
  void arrived(int member, int stream, std::int64_t bytes);

  // Bytes of a stream that this rank has not sent or received.
  std::int64_t unsent(int member, int stream) const;
  std::int64_t missing(int member, int stream) const;
  // Does this rank still need `member`, apart from its call?
  bool needs_to_send(int member) const;
  bool needs_to_receive(int member) const;
  // Everybody has been told of the call, everything has been sent and all that was wanted has come.
  bool complete() const;

 private:
  // One stream between this rank and one member.
  struct Stream {
    std::optional<Transfers::Message> to_send;  // the next one, not taken yet
    std::int64_t sent = 0;
    std::optional<Transfers::Message> to_fill;  // the one that bytes arrive for
    std::int64_t filled = 0;                    // of it
    std::int64_t received = 0;                  // of the stream
  };
  struct Lane {
    Stream streams[Transfers::kStreams];
    bool call_sent = false;
    bool call_received = false;
  };

  Lane& lane(int member) { return lanes_[static_cast<std::size_t>(member)]; }
  const Lane& lane(int member) const { return lanes_[static_cast<std::size_t>(member)]; }

  OperationId id_;
  Operation call_;
  int rank_;
  std::vector<Lane> lanes_;
  std::unique_ptr<Transfers> transfers_;
};

}  // namespace thinwire::sockets
