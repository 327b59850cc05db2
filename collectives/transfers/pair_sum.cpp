#include "collectives/transfers/pair_sum.h"

#include <algorithm>
#include <cstring>

namespace thinwire {

PairSum::PairSum(const Operation& call, int rank, std::int64_t piece_bytes)
    : dtype_(call.input.scalar_type()),
      op_(call.op),
      width_(static_cast<std::int64_t>(call.input.element_size())),
      data_(static_cast<char*>(call.output.data_ptr())),
      total_(call.input.numel() * width_) {
  const Counts offsets = offsets_of(call.output_counts);
  own_begin_ = offsets[static_cast<std::size_t>(rank)] * width_;
  own_end_ = offsets[static_cast<std::size_t>(rank) + 1] * width_;
  piece_bytes_ = std::max<std::int64_t>(1, std::min(piece_bytes, total_) / width_) * width_;
  const std::int64_t pieces = (total_ + piece_bytes_ - 1) / piece_bytes_;
  states_.resize(static_cast<std::size_t>(pieces));
  slots_ = std::make_unique_for_overwrite<char[]>(
      static_cast<std::size_t>(std::min(kSlots, pieces) * piece_bytes_));
}

std::int64_t PairSum::bytes_of(std::int64_t piece) const {
  return std::min(piece_bytes_, total_ - piece * piece_bytes_);
}

std::optional<Transfers::Message> PairSum::next_to_send(int, int stream) {
  if (stream != 0 || send_next_ == pieces()) return {};
  const std::int64_t piece = send_next_++;
  return Message{data_ + piece * piece_bytes_, bytes_of(piece), piece};
}

std::optional<Transfers::Message> PairSum::next_to_receive(int, int stream) {
  if (stream != 0 || receive_next_ == pieces()) return {};
  // The piece that had the slot before must be in the result.
  if (receive_next_ >= kSlots && !state(receive_next_ - kSlots).summed) return {};
  const std::int64_t piece = receive_next_++;
  return Message{slot(piece), bytes_of(piece), piece};
}

void PairSum::sent(int, int, const Message& message) {
  state(message.place).sent = true;
  add_what_is_there(message.place);
}

void PairSum::received(int, int, const Message& message) {
  state(message.place).arrived = true;
  add_what_is_there(message.place);
}

// The result takes the place of this rank's terms, so they must have left. The own share begins
// with the other rank's terms, the other's share with these (`ring_order`): a minimum, a maximum
// and a NaN depend on it.
void PairSum::add_what_is_there(std::int64_t piece) {
  State& now = state(piece);
  if (!now.sent || !now.arrived) return;
  now.summed = true;
  ++summed_;
  const std::int64_t begin = piece * piece_bytes_;
  const std::int64_t end = begin + bytes_of(piece);
  const std::int64_t own_begin = std::clamp(own_begin_, begin, end);
  const std::int64_t own_end = std::clamp(own_end_, begin, end);
  char* const arrived = slot(piece);
  const auto there = [&](std::int64_t place) { return arrived + (place - begin); };
  const auto add = [&](char* into, const char* from, std::int64_t bytes) {
    reduce_into(dtype_, op_, into, from, bytes / width_);
  };
  add(data_ + begin, there(begin), own_begin - begin);
  add(there(own_begin), data_ + own_begin, own_end - own_begin);
  std::memcpy(data_ + own_begin, there(own_begin), static_cast<std::size_t>(own_end - own_begin));
  add(data_ + own_end, there(own_end), end - own_end);
}

}  // namespace thinwire
