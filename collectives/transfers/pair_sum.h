// Two ranks that both want a sum exchange all their terms.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "collectives/transfers/transfers.h"

namespace thinwire {

// One rank's part in an all_reduce of two ranks. As many bytes travel as by way of the owners, and
// it takes one message's time rather than two, for twice the additions. What is added to what still
// goes by the owners of the shares.
class PairSum final : public Transfers {
 public:
  PairSum(const Operation& call, int rank, std::int64_t piece_bytes);

  std::int64_t bytes_to_send(int, int stream) const override { return stream == 0 ? total_ : 0; }
  std::int64_t bytes_to_receive(int, int stream) const override { return stream == 0 ? total_ : 0; }
  std::optional<Message> next_to_send(int peer, int stream) override;
  std::optional<Message> next_to_receive(int peer, int stream) override;
  void sent(int peer, int stream, const Message& message) override;
  void received(int peer, int stream, const Message& message) override;
  bool done() const override { return summed_ == states_.size(); }

 private:
  static constexpr std::int64_t kSlots = 64;

  // What has happened to a piece.
  struct State {
    bool sent = false;
    bool arrived = false;
    bool summed = false;
  };

  std::int64_t bytes_of(std::int64_t piece) const;
  char* slot(std::int64_t piece) const { return slots_.get() + piece % kSlots * piece_bytes_; }
  State& state(std::int64_t piece) { return states_[static_cast<std::size_t>(piece)]; }
  std::int64_t pieces() const { return static_cast<std::int64_t>(states_.size()); }
  void add_what_is_there(std::int64_t piece);

  at::ScalarType dtype_;
  ReduceOp op_;
  std::int64_t width_;  // bytes of an element
  char* data_;
  std::int64_t total_;      // bytes, as are the following
  std::int64_t own_begin_;  // the share whose owner this rank is
  std::int64_t own_end_;
  std::int64_t piece_bytes_ = 1;  // whole elements
  std::unique_ptr<char[]> slots_;
  std::vector<State> states_;  // by piece
  std::int64_t send_next_ = 0;
  std::int64_t receive_next_ = 0;
  std::size_t summed_ = 0;  // pieces
};

}  // namespace thinwire
