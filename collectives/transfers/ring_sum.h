// A sum goes round a ring of ranks: no link carries more than one stream in each direction.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "collectives/transfers/transfers.h"

namespace thinwire {

// One rank's part in a reduce_scatter or all_reduce in which every rank hears the one before it and
// sends to the one behind it, in the first stream. A share starts behind its owner and grows by one
// rank's terms at each step until it is at its owner's; from there the result goes round to all.
// Pieces go in groups, each through all steps, so that the wire is never idle and memory is
// bounded.
class RingSum final : public Transfers {
 public:
  RingSum(const Operation& call, int rank, int size, std::int64_t piece_bytes);

  std::int64_t bytes_to_send(int peer, int stream) const override;
  std::int64_t bytes_to_receive(int peer, int stream) const override;
  std::optional<Message> next_to_send(int peer, int stream) override;
  std::optional<Message> next_to_receive(int peer, int stream) override;
  void sent(int peer, int stream, const Message& message) override;
  void received(int peer, int stream, const Message& message) override;
  bool done() const override { return to_send_ == 0 && to_receive_ == 0; }
  bool goes_round() const override { return size_ > 2; }

 private:
  static constexpr std::int64_t kGroup = 32;  // pieces
  static constexpr std::int64_t kSlots = 2 * kGroup;

  // Elements of the sum that have one owner.
  struct Share {
    std::int64_t begin = 0;
    std::int64_t count = 0;
  };
  // A message's part of the work: a place, taken apart.
  struct Part {
    std::int64_t step = 0;
    std::int64_t piece = 0;  // of the share
    int owner = 0;           // of the share
    std::int64_t count = 0;  // elements; 0: the share has no such piece
  };
  int before() const { return (rank_ + size_ - 1) % size_; }
  int behind() const { return (rank_ + 1) % size_; }
  Part part(std::int64_t place, int first_owner) const;
  Part part_to_send(std::int64_t place) const { return part(place, rank_ - 1); }
  Part part_to_receive(std::int64_t place) const { return part(place, rank_ - 2); }
  // Whether the terms that arrive in this step are added to, rather than being results.
  bool grows(std::int64_t step) const { return step < size_ - 1; }
  const Share& share(int owner) const { return shares_[static_cast<std::size_t>(owner)]; }
  std::int64_t element(const Part& part) const {
    return share(part.owner).begin + part.piece * piece_;
  }
  char* input(const Part& part) const { return input_ + element(part) * width_; }
  char* output(const Part& part) const { return output_ + element(part) * width_; }
  // Of this rank's own share.
  char* result(const Part& part) const { return result_ + part.piece * piece_ * width_; }
  void pass_over_absent();
  void mark_sent(std::int64_t place);
  void take(const Part& part, char* arrived);
  char* slot(std::int64_t place) const;
  bool slot_is_free(std::int64_t place) const;

  at::ScalarType dtype_;
  ReduceOp op_;
  int rank_;
  int size_;
  std::int64_t width_;         // bytes of an element
  std::vector<Share> shares_;  // by owner
  std::int64_t total_ = 0;     // elements
  char* input_;
  char* output_;
  char* result_;
  bool passes_results_on_;  // in an all_reduce
  std::int64_t piece_ = 1;  // elements
  std::int64_t steps_ = 0;
  std::int64_t places_ = 0;
  std::unique_ptr<char[]> slots_;
  // By place; a place without a message counts as soon as it is passed over.
  std::vector<bool> sent_, received_;
  std::int64_t send_next_ = 0;
  std::int64_t receive_next_ = 0;
  std::int64_t to_send_ = 0;  // places
  std::int64_t to_receive_ = 0;
};

}  // namespace thinwire
