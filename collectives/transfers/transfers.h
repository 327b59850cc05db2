// Who sends what to whom in one operation, and what is summed when: planned once for every
// transport that moves bytes of host memory (MPI's requests, the frames of sockets).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "collectives/operation.h"
#include "collectives/transfers/block_pool.h"

namespace thinwire {

// What becomes of a share without bytes.
enum class EmptyShares {
  stay,    // Nothing is sent: the transport itself tells the peers what was called.
  travel,  // An empty message is sent, so that every peer of an operation sees that it was called.
};

struct TransferOptions {
  // No message is longer, unless an element is. Direct sums are formed and passed on in pieces of
  // that size.
  std::int64_t message_bytes = 1 << 18;
  // Above 0: a sum of which a share is longer goes round a ring in pieces of that size, and two
  // ranks exchange their terms whole. For that a message must wait at its sender until the receiver
  // has room for it, so it needs a transport on which such a message holds up no other.
  std::int64_t ring_piece_bytes = 0;
  EmptyShares empty_shares = EmptyShares::stay;
};

// One rank's part in one operation: a small state machine that moves no bytes itself. The transport
// asks it for messages, carries them, and says when they have ended; the sums are formed as it
// does. Not thread-safe.
//
// Between two ranks there are up to two streams in each direction. The first carries shares to
// their owners, or all there is; the second carries finished shares from their owners. The messages
// of a stream are handed out in the same order and of the same sizes at both of its ends.
class Transfers {
 public:
  static constexpr int kStreams = 2;

  struct Message {
    char* data = nullptr;
    std::int64_t bytes = 0;
    std::int64_t place = 0;  // tells the plan which of the stream's messages it is
  };

  Transfers() = default;
  virtual ~Transfers() = default;
  Transfers(const Transfers&) = delete;
  Transfers& operator=(const Transfers&) = delete;

  // Bytes of the whole stream.
  virtual std::int64_t bytes_to_send(int peer, int stream) const = 0;
  virtual std::int64_t bytes_to_receive(int peer, int stream) const = 0;

  // The next message of a stream, which the transport takes over. Nullopt: none may go now; ask
  // again when another message of this operation has been handed out or has ended.
  virtual std::optional<Message> next_to_send(int peer, int stream) = 0;
  virtual std::optional<Message> next_to_receive(int peer, int stream) = 0;
  // A message has ended: its memory has been read, or is filled. Those of one stream may end in any
  // order.
  virtual void sent(int peer, int stream, const Message& message) = 0;
  virtual void received(int peer, int stream, const Message& message) = 0;

  // Everything has been sent and received, and the result is there.
  virtual bool done() const = 0;

  // Whether a peer from which nothing comes may itself be waiting for somebody else.
  virtual bool goes_round() const { return false; }
};

// The plan for `call` on `rank` of `size` ranks. What it needs of the tensors' memory must outlive
// it, and so must `pool`. What needs no peer is done at once.
std::unique_ptr<Transfers> plan_transfers(const Operation& call, int rank, int size,
                                          const TransferOptions& options, BlockPool& pool);

}  // namespace thinwire
