// What one operation sends to each member of its group, what it receives, and what it makes of it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/operation.h"
#include "collectives/sockets/frame.h"

namespace thinwire::sockets {

// Pieces of memory for what cannot be added yet, used again while they are warm.
class BlockPool {
 public:
  using Block = std::unique_ptr<char[]>;

  explicit BlockPool(std::int64_t block_bytes) : block_bytes_(block_bytes) {}
  // At least `bytes`, which is at most the size of a block.
  Block take(std::int64_t bytes);
  void give_back(Block block, std::int64_t bytes);

 private:
  std::int64_t block_bytes_;
  std::vector<Block> free_;
};

// Bytes of one stream that go to one member.
struct Outgoing {
  const char* from = nullptr;
  std::int64_t total = 0;
  std::int64_t ready = 0;    // may be sent
  std::int64_t claimed = 0;  // are in a frame

  std::int64_t sendable() const { return ready - claimed; }
};

// Bytes of one stream that come from one member: straight to their place, or into blocks.
struct Incoming {
  char* to = nullptr;
  std::int64_t total = 0;
  std::int64_t received = 0;
  std::vector<BlockPool::Block> blocks;

  std::int64_t missing() const { return total - received; }
};

// Everything between this rank and one member in one operation.
struct Lane {
  Outgoing out[2];  // first and second stream
  Incoming in[2];
  bool call_sent = false;
  bool call_received = false;

  // Is there something that the member may get now?
  bool has_sendable() const {
    return call_received && (out[0].sendable() > 0 || out[1].sendable() > 0);
  }
};

// An operation in flight, without the network: which bytes may go, where bytes that came belong.
// The streams of each operation are those of `direct_bytes_sent`. Not thread-safe.
class Exchange {
 public:
  // `rank` and the indexes of lanes are places in the group. `pool` must outlive it.
  Exchange(OperationId id, Operation call, int rank, int size, std::int64_t chunk_bytes,
           BlockPool& pool);

  const OperationId& id() const { return id_; }
  const Operation& call() const { return call_; }
  Lane& lane(int member) { return lanes_[static_cast<std::size_t>(member)]; }
  const Lane& lane(int member) const { return lanes_[static_cast<std::size_t>(member)]; }
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(lanes_.size()); }

  // A header without bytes for this stream to `member`.
  FrameHeader header(int member, FrameKind kind) const;
  // What is wrong with a frame from `member`: empty, or what it did where what was expected.
  std::string mismatch(int member, const FrameHeader& header) const;

  struct Room {
    char* to = nullptr;
    std::int64_t bytes = 0;
  };
  // Where the next bytes of a stream from `member` go; in one piece, so possibly less than wanted.
  Room room(int member, int stream);
  // `bytes` of them have come.
  void arrived(int member, int stream, std::int64_t bytes);

  // Does this rank still need `member`, apart from its call?
  bool needs_to_send(int member) const;
  bool needs_to_receive(int member) const;
  // Everything that was wanted has come and everything to be sent is `claimed`.
  bool exchanged() const;

 private:
  char* in() const { return static_cast<char*>(call_.input.data_ptr()); }
  char* out() const { return static_cast<char*>(call_.output.data_ptr()); }
  void plan_sum(const Counts& counts, char* target);
  void plan_all_gather();
  void plan_all_to_all();
  void plan_broadcast();
  void gather_shares(const Counts& counts);
  void send(int member, int stream, const char* from, std::int64_t bytes);
  void receive(int member, int stream, char* to, std::int64_t bytes);
  void reduce_what_is_complete();
  void reduce_piece(std::int64_t begin, std::int64_t bytes);
  void pass_on(std::int64_t ready);
  template <typename Body>
  void each_peer(Body body);

  OperationId id_;
  Operation call_;
  int rank_;
  BlockPool& pool_;
  std::vector<Lane> lanes_;
  std::int64_t width_ = 0;        // bytes of an element
  std::int64_t piece_bytes_ = 0;  // whole elements
  // Sums: this rank's share, in its input and as it becomes the result.
  const char* own_ = nullptr;
  char* target_ = nullptr;
  std::int64_t share_bytes_ = 0;
  std::int64_t reduced_ = 0;
};

}  // namespace thinwire::sockets
