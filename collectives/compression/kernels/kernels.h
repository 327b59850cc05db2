// What reducers do to memory, as plain functions over pointers: one instance runs on the host, one
// on a GPU, with equal bits.
//
// All pointers in the arguments, the table of blocks included, are to memory that the instance can
// read: host memory for `host_kernels`, device memory for `cuda_kernels`. A launch on a stream
// returns at once; its arguments are copied, what they point to must live until it has run. Nothing
// may overlap except where a comment says so. A launch over no blocks does nothing.
//
// Equal bits: every sum is formed in 32 lanes, element i of a block in lane i % 32, and the lanes
// are folded, lane += lane + width for width 16, 8, 4, 2, 1. Only the bits of a NaN may differ.
//
// Random draws are a function of a key and an element's place: element i of a block takes word
// i / 32 % 4 of philox(key, 0, block.begin + i / 128 * 32 + i % 32), its upper 24 bits as a
// fraction of one.
//
// Payloads come from other ranks: no byte of one makes a kernel read or write out of bounds.
#pragma once

#include <cstdint>

#include "collectives/compression/kernels/format.h"
#include "collectives/stream.h"

namespace thinwire {

// Consecutive elements of one slice that are coded together.
struct Block {
  std::int64_t begin = 0;    // elements from the bucket's start
  std::int64_t payload = 0;  // bytes from the start of the packed message; not aligned
  std::int32_t count = 0;    // elements; the best size for a GPU is 1024, raw blocks too
  std::int32_t slice = 0;    // index into the bucket's slices
  Format format = {};
};

// What was not sent, and is part of later messages. `d` is what the payload decodes to.
//   tracker null, error feedback:  message m = g + e,            next = m - d
//   with a tracker h, EControl:    message m = (eta e + g) - h,  next = ((e + g) - h) - d
//
// Where a coding's d is nothing but m's signs times a scale s (keeps_messages), error feedback may
// keep m and s instead of e. The next step forms e = m - s or m + s as it reads it. So a block is
// coded in one pass over memory instead of two, with equal bits.
template <typename T>
struct Residual {
  const T* error = nullptr;    // e; null: no feedback, m = g, and nothing is kept
  const T* tracker = nullptr;  // h
  const T* eta = nullptr;      // with a tracker: one per slice of the bucket
  // Null, or one number per block of the table: s where `error` has the block's last m, 0 where it
  // has e.
  const T* sent = nullptr;
};

// gradient := momentum_next := keep * momentum + share * gradient. A held block's momentum stays.
template <typename T>
struct AverageArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  T* gradient = nullptr;  // the bucket's, as the next two are
  const T* momentum = nullptr;
  T* momentum_next = nullptr;
  T keep = 0;
  T share = 1;
};

// payload := code(m), and gradient := next (it stays where there is no feedback). A held block is
// in no payload; gradient := e.
template <typename T>
struct EncodeArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  T* gradient = nullptr;    // the bucket's: g
  Residual<T> residual;     // the bucket's
  char* payload = nullptr;  // the whole packed message
  std::uint64_t rounding_key = 0;
  // Null, or two sums per block of the table: of m^2, and of (m - d)^2. 0 for held and raw blocks.
  T* energy = nullptr;
  // With residual.sent, of the next step; gradient := m where it is not 0. Without energy.
  T* sent_next = nullptr;
};

// For the blocks of the chunk that this rank owns, all but `blocks` relative to the chunk's start:
//   mean := (0 + decoded from rank 0 + decoded from rank 1 + ...) / ranks,
//   g := mean, or with a tracker  g := mean_tracker + mean, which is kept in mean_tracker_next,
//   reply := code(m), owner_next := next.
// One rank divides by nothing. A held block is in no payload; owner_next := e, and
// mean_tracker_next := mean_tracker.
template <typename T>
struct OwnerReduceArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  std::int64_t chunk_begin = 0;    // elements from the bucket's start to the chunk's
  std::int64_t payload_begin = 0;  // Block::payload of the chunk's first byte
  const char* arrived = nullptr;   // one packed chunk per rank, in rank order
  std::int64_t stride = 0;         // bytes from one rank's packed chunk to the next
  std::int32_t ranks = 1;
  Residual<T> residual;             // the chunk's; its tracker is what the owners sent in all
  T* owner_next = nullptr;          // the chunk's; without feedback scratch, but not null
  const T* mean_tracker = nullptr;  // with a tracker: the mean of the ranks' trackers
  T* mean_tracker_next = nullptr;
  char* reply = nullptr;  // the packed chunk
  std::uint64_t rounding_key = 0;
  T* sent_next = nullptr;  // as of EncodeArgs; owner_next := m
};

// Where `error` has messages, it has e afterwards: error := e, and sent := 0.
template <typename T>
struct FormErrorArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  T* error = nullptr;  // of Residual, as `sent` is
  T* sent = nullptr;
  std::int64_t chunk_begin = 0;  // elements from the bucket's start to the first of `error`
};

// Looks for the first slice whose sum over ranks may not be finite: flag := min(flag, index) for
// every slice with a block that some rank's payload decodes to a NaN, or to a magnitude above
// largest_addend(ranks). A coding may judge by less than each of its values (codings/quantize.h).
template <typename T>
struct FirstNonFiniteArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  const char* payload = nullptr;  // `ranks` whole packed messages
  std::int64_t stride = 0;        // bytes from one to the next
  std::int32_t ranks = 1;
  std::int32_t* flag = nullptr;  // the caller sets it before, to INT32_MAX
};

// The mean of what ranks sent, (0 + decoded from rank 0 + ...) / ranks; one rank divides by
// nothing.
//   decode:     into := mean; 0 in held blocks
//   integrate:  into := into + mean; held blocks stay
template <typename T>
struct DecodeArgs {
  const Block* blocks = nullptr;
  std::int64_t block_count = 0;
  const char* payload = nullptr;  // `ranks` whole packed messages
  std::int64_t stride = 0;        // bytes from one to the next
  std::int32_t ranks = 1;
  T* into = nullptr;  // the bucket's
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
  void (*average)(const AverageArgs<T>& args, const Executor& on);
  void (*encode)(const EncodeArgs<T>& args, const Executor& on);
  void (*owner_reduce)(const OwnerReduceArgs<T>& args, const Executor& on);
  void (*form_error)(const FormErrorArgs<T>& args, const Executor& on);
  void (*first_non_finite)(const FirstNonFiniteArgs<T>& args, const Executor& on);
  void (*decode)(const DecodeArgs<T>& args, const Executor& on);
  void (*integrate)(const DecodeArgs<T>& args, const Executor& on);
  void (*mean_and_check)(const MeanAndCheckArgs<T>& args, const Executor& on);
};

// Runs at once, in the calling thread.
template <typename T>
Kernels<T> host_kernels();

// Queues on the stream, in the current device's context; throws `Error` when a launch fails. Only
// in builds with CUDA: of float in the library thinwire::cuda_kernels, of double in one for tests.
template <typename T>
Kernels<T> cuda_kernels();

extern template Kernels<float> host_kernels<float>();
extern template Kernels<double> host_kernels<double>();
extern template Kernels<float> cuda_kernels<float>();
extern template Kernels<double> cuda_kernels<double>();

}  // namespace thinwire
