#include "collectives/transfers/ring_sum.h"

#include <algorithm>
#include <cstring>

namespace thinwire {

RingSum::RingSum(const Operation& call, int rank, int size, std::int64_t piece_bytes)
    : dtype_(call.input.scalar_type()),
      op_(call.op),
      rank_(rank),
      size_(size),
      width_(static_cast<std::int64_t>(call.input.element_size())),
      input_(static_cast<char*>(call.input.data_ptr())),
      output_(static_cast<char*>(call.output.data_ptr())),
      passes_results_on_(call.kind == OperationKind::all_reduce) {
  const Counts& counts = passes_results_on_ ? call.output_counts : call.input_counts;
  const Counts offsets = offsets_of(counts);
  for (std::size_t owner = 0; owner < counts.size(); ++owner) {
    shares_.push_back({offsets[owner], counts[owner]});
  }
  total_ = offsets.back();
  result_ = passes_results_on_ ? output_ + share(rank).begin * width_ : output_;
  steps_ = (passes_results_on_ ? 2 : 1) * (size - 1);
  std::int64_t largest = 0;
  for (const Share& one : shares_) largest = std::max(largest, one.count);
  piece_ = std::max<std::int64_t>(1, std::min(piece_bytes / width_, largest));
  const std::int64_t pieces = (largest + piece_ - 1) / piece_;
  places_ = (pieces + kGroup - 1) / kGroup * steps_ * kGroup;
  const auto places = static_cast<std::size_t>(places_);
  sent_.resize(places);
  received_.resize(places);
  to_send_ = to_receive_ = places_;
  slots_ = std::make_unique_for_overwrite<char[]>(
      static_cast<std::size_t>(std::min(kSlots, places_) * piece_ * width_));
  if (size > 1) return;
  const std::int64_t bytes = largest * width_;
  if (result_ != input_ && bytes > 0) {
    std::memcpy(result_, input_, static_cast<std::size_t>(bytes));
  }
}

// A rank sends on the terms of every share but its own, and the results of all but that of the rank
// behind it.
std::int64_t RingSum::bytes_to_send(int peer, int stream) const {
  if (size_ == 1 || peer != behind() || stream != 0) return 0;
  const std::int64_t results = passes_results_on_ ? total_ - share(behind()).count : 0;
  return (total_ - share(rank_).count + results) * width_;
}

std::int64_t RingSum::bytes_to_receive(int peer, int stream) const {
  if (size_ == 1 || peer != before() || stream != 0) return 0;
  const std::int64_t results = passes_results_on_ ? total_ - share(rank_).count : 0;
  return (total_ - share(before()).count + results) * width_;
}

RingSum::Part RingSum::part(std::int64_t place, int first_owner) const {
  Part part;
  part.step = place / kGroup % steps_;
  part.piece = place / (kGroup * steps_) * kGroup + place % kGroup;
  // From 1 - 2 size on.
  part.owner = static_cast<int>((first_owner - part.step + 2 * size_) % size_);
  part.count = std::clamp<std::int64_t>(share(part.owner).count - part.piece * piece_, 0, piece_);
  return part;
}

// Slots are taken in the order of the messages that need one.
char* RingSum::slot(std::int64_t place) const {
  const std::int64_t block = place / kGroup;
  const std::int64_t block_with_slots = block / steps_ * (size_ - 1) + block % steps_;
  return slots_.get() + (block_with_slots * kGroup + place % kGroup) % kSlots * piece_ * width_;
}

// What was in it before has gone on, or into this rank's result.
bool RingSum::slot_is_free(std::int64_t place) const {
  const std::int64_t block = place / kGroup;
  const std::int64_t before = block / steps_ * (size_ - 1) + block % steps_ - kSlots / kGroup;
  if (before < 0) return true;
  const std::int64_t step = before % (size_ - 1);
  const std::int64_t user = (before / (size_ - 1) * steps_ + step) * kGroup + place % kGroup;
  return step == size_ - 2 ? received_[static_cast<std::size_t>(user)]
                           : sent_[static_cast<std::size_t>(user + kGroup)];
}

// Places without a message, as a share is shorter than others.
void RingSum::pass_over_absent() {
  for (bool moved = true; moved;) {
    moved = false;
    for (; send_next_ < places_ && part_to_send(send_next_).count == 0; ++send_next_) {
      mark_sent(send_next_);
      moved = true;
    }
    for (; receive_next_ < places_; ++receive_next_) {
      const Part part = part_to_receive(receive_next_);
      // They take their slot all the same: its next user looks no further back than to this one.
      if (part.count > 0 || (grows(part.step) && !slot_is_free(receive_next_))) break;
      received_[static_cast<std::size_t>(receive_next_)] = true;
      --to_receive_;
      moved = true;
    }
  }
}

std::optional<Transfers::Message> RingSum::next_to_send(int peer, int stream) {
  if (peer != behind() || stream != 0) return {};
  pass_over_absent();
  if (send_next_ == places_) return {};
  const Part part = part_to_send(send_next_);
  // What goes on in this step came in the one before.
  if (part.step > 0 && !received_[static_cast<std::size_t>(send_next_ - kGroup)]) return {};
  const std::int64_t place = send_next_++;
  char* const data = part.step == 0           ? input(part)
                     : part.step == size_ - 1 ? result(part)
                     : grows(part.step)       ? slot(place - kGroup)
                                              : output(part);
  return Message{data, part.count * width_, place};
}

std::optional<Transfers::Message> RingSum::next_to_receive(int peer, int stream) {
  if (peer != before() || stream != 0) return {};
  pass_over_absent();
  if (receive_next_ == places_) return {};
  const Part part = part_to_receive(receive_next_);
  if (grows(part.step)) {
    if (part.count == 0 || !slot_is_free(receive_next_)) return {};
    const std::int64_t place = receive_next_++;
    return Message{slot(place), part.count * width_, place};
  }
  // The first result to come is that of the share whose terms were sent in the first step; in an
  // all_reduce it overwrites them. The terms of the others were added to what came.
  const std::int64_t first = receive_next_ - (size_ - 1) * kGroup;
  if (part.step == size_ - 1 && !sent_[static_cast<std::size_t>(first)]) return {};
  return Message{output(part), part.count * width_, receive_next_++};
}

void RingSum::mark_sent(std::int64_t place) {
  sent_[static_cast<std::size_t>(place)] = true;
  --to_send_;
}

void RingSum::sent(int, int, const Message& message) {
  mark_sent(message.place);
}

void RingSum::received(int, int, const Message& message) {
  received_[static_cast<std::size_t>(message.place)] = true;
  --to_receive_;
  const Part part = part_to_receive(message.place);
  if (grows(part.step)) take(part, message.data);
}

// What arrived grows by this rank's terms. In the last step that makes the result.
void RingSum::take(const Part& part, char* arrived) {
  reduce_into(dtype_, op_, arrived, input(part), part.count);
  if (part.step < size_ - 2) return;
  std::memcpy(result(part), arrived, static_cast<std::size_t>(part.count * width_));
}

}  // namespace thinwire
