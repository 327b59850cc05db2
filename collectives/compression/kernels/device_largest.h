// The search for a block's largest values on a GPU, and the payload of those that are kept;
// host_largest-inl.h says what the functions do.
#pragma once

#include "collectives/compression/kernels/device_rows.h"

THINWIRE_ROWS_BEGIN

// The warp's part of its group's shared memory.
template <typename T>
struct Tile {
  static constexpr std::int64_t size = 256;
  T* values;
  __device__ Tile() {
    __shared__ T all[warps_per_group][size];
    values = all[warp()];
  }
};

// None is needed: every count looks at all values.
struct Scratch {};

template <typename T, typename Message>
class Magnitudes {
 public:
  using Bits = BitsOf<T>;
  __device__ Magnitudes(Message& message, std::int64_t count, std::int64_t, Scratch&)
      : message_(message), count_(count) {
    rows(count, [&](auto row) {
      largest_ = largest_of(largest_, bits_of(magnitude(message_.form_for_recall(row))));
    });
    largest_ = largest_lane(largest_);
  }
  __device__ Bits largest() const { return largest_; }
  __device__ void collect() {}
  __device__ std::int64_t passing(Bits least) const {
    int passed = 0;
    rows(count_, [&](auto row) {
      if (bits_of(magnitude(message_.recall(row))) >= least) ++passed;
    });
    return sum_of_lanes(passed);
  }
  template <typename Body>
  __device__ void visit(Body body) const {
    rows(count_, body);
  }
  template <typename Body>
  __device__ void visit_all(Body body) const {
    rows(count_, body);
  }

 private:
  Message& message_;
  std::int64_t count_;
  Bits largest_ = 0;
};

// Indices wait in shared memory until 32 of them make whole words: as many as an index has bits.
template <typename T>
class KeptWriter {
 public:
  __device__ KeptWriter(char* payload, std::int64_t room, int width)
      : payload_(payload), room_(room), width_(width) {
    __shared__ std::uint32_t all[warps_per_group][2 * row_lanes];
    waiting_ = all[warp()];
    waiting_[lane()] = 0;
    waiting_[row_lanes + lane()] = 0;
    __syncwarp();
  }

  __device__ void append(std::uint32_t word, T value, std::int64_t begin) {
    if (word == 0) return;
    const int before = __popc(word & ((1u << lane()) - 1));
    if ((word >> lane() & 1) != 0) {
      store_one(payload_ + 4 + (count_ + before) * value_bytes, value);
      waiting_[waits_ + before] = static_cast<std::uint32_t>(begin + lane());
    }
    count_ += __popc(word);
    waits_ += __popc(word);
    __syncwarp();
    if (waits_ < row_lanes) return;
    write_words();
    const std::uint32_t moved_down = waiting_[row_lanes + lane()];
    __syncwarp();
    waiting_[lane()] = moved_down;
    waiting_[row_lanes + lane()] = 0;
    waits_ -= row_lanes;
    __syncwarp();
  }

  __device__ void close() {
    if (waits_ > 0) write_words();
    once([&] { store_one(payload_, static_cast<std::uint32_t>(count_)); });
    char* const values = payload_ + 4;
    for (std::int64_t i = count_ * value_bytes + lane(); i < room_ * value_bytes; i += row_lanes) {
      values[i] = 0;
    }
    for (std::int64_t i = written_ + lane(); i < stream_bytes(); i += row_lanes) {
      values[room_ * value_bytes + i] = 0;
    }
    __syncwarp();
  }

 private:
  static constexpr std::int64_t value_bytes = sizeof(T);
  __device__ std::int64_t stream_bytes() const { return (room_ * width_ + 7) / 8; }
  // The 32 indices that wait: word w of them is made by lane w.
  __device__ void write_words() {
    if (lane() < width_) {
      std::uint32_t word = 0;
      const int first_bit = row_lanes * lane();
      for (int entry = first_bit / width_; entry < row_lanes; ++entry) {
        const int place = entry * width_ - first_bit;  // of the index in the word
        if (place >= row_lanes) break;
        word |= place < 0 ? waiting_[entry] >> -place : waiting_[entry] << place;
      }
      char* const stream = payload_ + 4 + room_ * value_bytes;
      for (int byte = 0; byte < 4; ++byte) {
        const std::int64_t at = written_ + 4 * lane() + byte;
        if (at < stream_bytes()) stream[at] = static_cast<char>(word >> (8 * byte));
      }
    }
    written_ += 4 * width_;
    __syncwarp();
  }

  char* payload_;
  std::int64_t room_;
  int width_;
  std::uint32_t* waiting_;
  std::int64_t count_ = 0;
  int waits_ = 0;
  std::int64_t written_ = 0;  // bytes of the stream
};

THINWIRE_ROWS_END
