// What a 1-bit reducer does to memory, as plain functions over pointers: one instance runs on the
// host, one on a GPU, with equal bits.
//
// All pointers in the arguments, the table of blocks included, are to memory that the instance can
// read: host memory for `host_kernels`, device memory for `cuda_kernels`. A launch on a stream
// returns at once; its arguments are copied, what they point to must live until it has run. Nothing
// may overlap except where a comment says so. A launch over no blocks does nothing.
//
// Equal bits: every sum is formed in 32 lanes, element i of a block in lane i % 32, and the lanes
// are folded, lane += lane + width for width 16, 8, 4, 2, 1. Only the bits of a NaN may differ.
#pragma once

#include <cstdint>

#include "collectives/compression/kernels/stream.h"

namespace thinwire {

// How one block travels.
enum class Coding : std::int32_t {
  raw,   // the values themselves
  sign,  // a scale and one bit per value, as SignCodec codes one block
  held,  // a frozen slice: in no message, and its residual stays
};

// Consecutive elements of one slice that are coded together.
struct Block {
  std::int64_t begin = 0;  // elements from the bucket's start
  std::int32_t count = 0;  // elements; the best size for a GPU is 1024, raw blocks too
  std::int32_t slice = 0;  // index into the bucket's slices
  Coding coding = Coding::raw;
  std::int64_t payload = 0;  // bytes from the start of the packed message; not aligned
};

// Bytes of one block's payload.
template <typename T>
constexpr std::int64_t block_payload_bytes(Coding coding, std::int64_t count) {
  const auto size = static_cast<std::int64_t>(sizeof(T));
  if (coding == Coding::held || count == 0) return 0;
  return coding == Coding::raw ? count * size : size + (count + 7) / 8;
}

// payload := code(m) with m = gradient + residual, then gradient := m - decoded(payload).
// A held block is in no payload; gradient := residual.
// Without residual: payload := code(gradient), and the gradient stays.
template <typename T>
struct EncodeArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  T* gradient = nullptr;        // the bucket's
  const T* residual = nullptr;  // the bucket's; may be null
  char* payload = nullptr;      // the whole packed message
};

// For the blocks of the chunk that this rank owns:
//   mean := (0 + decoded from rank 0 + decoded from rank 1 + ...) / ranks + owner_residual,
//   reply := code(mean), owner_next := mean - decoded(reply).
// One rank divides by nothing. A held block is in no payload; owner_next := owner_residual.
template <typename T>
struct OwnerReduceArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  std::int64_t chunk_begin = 0;    // elements from the bucket's start to the chunk's
  std::int64_t payload_begin = 0;  // Block::payload of the chunk's first byte
  const char* arrived = nullptr;   // one packed chunk per rank, in rank order
  std::int64_t stride = 0;         // bytes from one rank's packed chunk to the next
  std::int32_t ranks = 1;
  const T* owner_residual = nullptr;  // the chunk's; null: no feedback
  T* owner_next = nullptr;            // the chunk's; without feedback scratch, but not null
  char* reply = nullptr;              // the packed chunk
};

// flag := min(flag, the index of every slice with a block whose payload is not finite).
template <typename T>
struct FirstNonFiniteArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  const char* payload = nullptr;  // the whole packed message
  std::int32_t* flag = nullptr;   // the caller sets it before, to INT32_MAX
};

// gradient := 0 + decoded(payload); 0 in held blocks.
template <typename T>
struct DecodeArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  const char* payload = nullptr;  // the whole packed message
  T* gradient = nullptr;          // the bucket's
};

// gradient := gradient / ranks, and flag := min(flag, the index of every slice that was not finite
// before the division). Every block alike, whatever its coding.
template <typename T>
struct MeanAndCheckArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  T* gradient = nullptr;  // the bucket's: the sum over ranks
  std::int32_t ranks = 1;
  std::int32_t* flag = nullptr;  // the caller sets it before, to INT32_MAX
};

// One instance of every kernel; T is float or double. A simulator may put its own functions here.
template <typename T>
struct Kernels {
  void (*encode)(const EncodeArgs<T>& args, StreamHandle stream);
  void (*owner_reduce)(const OwnerReduceArgs<T>& args, StreamHandle stream);
  void (*first_non_finite)(const FirstNonFiniteArgs<T>& args, StreamHandle stream);
  void (*decode)(const DecodeArgs<T>& args, StreamHandle stream);
  void (*mean_and_check)(const MeanAndCheckArgs<T>& args, StreamHandle stream);
};

// Runs at once, in the calling thread.
template <typename T>
Kernels<T> host_kernels();

// Queues on the stream, in the current device's context; throws `Error` when a launch fails. Only
// in builds with CUDA, in the library thinwire::cuda_kernels.
template <typename T>
Kernels<T> cuda_kernels();

extern template Kernels<float> host_kernels<float>();
extern template Kernels<double> host_kernels<double>();
extern template Kernels<float> cuda_kernels<float>();
extern template Kernels<double> cuda_kernels<double>();

}  // namespace thinwire
