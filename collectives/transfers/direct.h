// Every share goes straight from the rank that has it to the ranks that need it.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "collectives/transfers/transfers.h"

namespace thinwire {

// In a sum each share goes to its owner, who adds all ranks' terms piece by piece; in an all_reduce
// he passes each finished piece on while the next ones still come. In a broadcast the root deals
// out shares, and every rank passes its own on to those that lack it.
class DirectTransfers final : public Transfers {
 public:
  DirectTransfers(const Operation& call, int rank, int size, const TransferOptions& options,
                  BlockPool& pool);

  std::int64_t bytes_to_send(int peer, int stream) const override {
    return lane(peer).out[stream].total;
  }
  std::int64_t bytes_to_receive(int peer, int stream) const override {
    return lane(peer).in[stream].total;
  }
  std::optional<Message> next_to_send(int peer, int stream) override;
  std::optional<Message> next_to_receive(int peer, int stream) override;
  void sent(int peer, int stream, const Message& message) override;
  void received(int peer, int stream, const Message& message) override;
  bool done() const override { return open_ == 0; }

 private:
  // How far the messages of a stream have ended without a gap.
  class Ended {
   public:
    void add(std::int64_t place, std::int64_t bytes);
    std::int64_t up_to() const { return up_to_; }

   private:
    std::int64_t up_to_ = 0;
    std::vector<std::pair<std::int64_t, std::int64_t>> beyond_;  // place and bytes
  };
  // One stream in one direction.
  struct Stream {
    char* memory = nullptr;
    std::int64_t total = 0;
    std::int64_t ready = 0;  // So many bytes may be handed out.
    std::int64_t handed_out = 0;
    bool begun = false;  // A message has been handed out.
    bool open = false;   // Messages have not ended yet.
    Ended ended;
  };
  // Everything between this rank and one peer.
  struct Lane {
    Stream out[kStreams];
    Stream in[kStreams];
    std::vector<BlockPool::Block> terms;  // of a sum: what came, by piece
  };

  Lane& lane(int peer) { return lanes_[static_cast<std::size_t>(peer)]; }
  const Lane& lane(int peer) const { return lanes_[static_cast<std::size_t>(peer)]; }
  int size() const { return static_cast<int>(lanes_.size()); }
  template <typename Body>
  void each_peer(Body body);

  void plan_sum(const Counts& counts, const char* input, char* target);
  void plan_gather(const Counts& counts, const char* input, char* output);
  void plan_all_to_all(const Operation& call, const char* input, char* output);
  void plan_broadcast(const Operation& call, char* data);
  void plan_finished_shares(const Counts& counts, char* output);
  void open(Stream& stream, const char* memory, std::int64_t bytes, std::int64_t ready);
  std::optional<Message> next(Stream& stream);
  void end(Stream& stream, const Message& message);
  void reduce_what_is_complete();
  void reduce_piece(std::int64_t begin, std::int64_t bytes);
  void pass_on(std::int64_t ready);

  const OperationKind kind_;
  const ReduceOp op_;
  const int rank_;
  const EmptyShares empty_shares_;
  BlockPool& pool_;
  std::vector<Lane> lanes_;
  std::int64_t open_ = 0;  // streams
  at::ScalarType dtype_ = at::kByte;
  std::int64_t width_ = 1;          // bytes of an element
  std::int64_t message_bytes_ = 1;  // whole elements
  // Of a sum: this rank's share, in its input and as it becomes the result.
  const char* own_ = nullptr;
  char* target_ = nullptr;
  std::int64_t share_bytes_ = 0;
  std::int64_t reduced_ = 0;
};

}  // namespace thinwire
