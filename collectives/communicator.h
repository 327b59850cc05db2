// A fixed group of ranks that act together, and the operations in flight between them.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace thinwire {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

enum class ReduceOp { sum, min, max };

// Elements per rank. Empty: equal shares.
using Counts = std::vector<std::int64_t>;

// An operation in flight. Its tensors are kept alive by it and must not be touched until `wait`
// returned. Every Work must be waited for; one that is dropped aborts its group.
class Work {
 public:
  explicit Work(std::chrono::milliseconds timeout) : deadline_(Clock::now() + timeout) {}
  virtual ~Work() = default;
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  // Blocks until the operation is done, without spinning. Throws `PeerLost` when `deadline` passes
  // first or when the group was aborted; the communicator is poisoned then.
  virtual void wait(Deadline deadline) = 0;
  // The same with the communicator's own timeout, counted from the start of the operation.
  void wait() { wait(deadline_); }

  // Bytes that this rank put on the wire for this operation; final once `wait` returned.
  virtual std::int64_t bytes_sent() const = 0;

 private:
  Deadline deadline_;
};

// A fixed group of ranks that act together.
//
// Every rank calls the same operations, with matching arguments, in the same order. Tensors are
// contiguous, of dtype float32, float64, int32, int64 or uint8 (also int8 and bool as bytes), of
// any size including empty. One thread at a time may call a communicator. Sums are formed in one
// order (`ring_order`), so a result is the same bits on every rank and in every run (backends whose
// library reduces on its own, such as NCCL, only promise equality between ranks).
//
// After an error (`PeerLost`, `RanksDisagree`) the communicator is poisoned: every further call
// throws.
class Communicator {
 public:
  Communicator(int rank, int size, std::chrono::milliseconds timeout)
      : rank_(rank), size_(size), timeout_(timeout) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  // How long an operation may take before it counts as lost.
  std::chrono::milliseconds timeout() const { return timeout_; }

  // tensor := op over ranks of tensor.
  virtual std::unique_ptr<Work> all_reduce(at::Tensor tensor, ReduceOp op) = 0;
  // input: counts[0] + ... + counts[size-1] elements; output: this rank's counts[rank] of the
  // reduced input. The tensors must not overlap.
  virtual std::unique_ptr<Work> reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op,
                                               Counts counts) = 0;
  // input: this rank's counts[rank] elements; output: all of them in rank order. The input may be
  // its own place in the output.
  virtual std::unique_ptr<Work> all_gather(at::Tensor output, at::Tensor input, Counts counts) = 0;
  // Rank i's input part j (input_counts[j] elements) becomes rank j's output part i.
  // The tensors must not overlap.
  virtual std::unique_ptr<Work> all_to_all(at::Tensor output, at::Tensor input,
                                           Counts output_counts, Counts input_counts) = 0;
  // tensor := root's tensor.
  virtual std::unique_ptr<Work> broadcast(at::Tensor tensor, int root) = 0;
  virtual std::unique_ptr<Work> barrier() = 0;
  // Blocks. Ranks that give the same color form a group, ordered by (key, rank). color >= 0.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
  // Poisons the group: pending and later waits on it throw `PeerLost` with `reason`, here at once
  // and on the other ranks as soon as the backend can tell them. Safe from any thread.
  virtual void abort(const std::string& reason) = 0;

 private:
  int rank_;
  int size_;
  std::chrono::milliseconds timeout_;
};

// Bytes that a ring all-reduce of `bytes` sends per rank: 2 (n-1)/n, and 0 on one rank.
inline double ring_bytes(double bytes, int size) {
  return size < 2 ? 0.0 : 2.0 * (size - 1) / size * bytes;
}

// Blocking helpers on top of the interface.

// The sum over ranks of each value.
std::vector<double> all_reduce_sum(Communicator& communicator, std::vector<double> values);
// The largest over ranks of each value.
std::vector<std::int64_t> all_reduce_max(Communicator& communicator,
                                         std::vector<std::int64_t> values);
// Every rank's text, in rank order.
std::vector<std::string> all_gather_text(Communicator& communicator, const std::string& text);
// Root's text.
std::string broadcast_text(Communicator& communicator, const std::string& text, int root);

}  // namespace thinwire
