// What one collective call is: its arguments as plain data, its name for messages, the bytes that
// it moves. Shared by the backends and the decorators.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "collectives/communicator.h"

namespace thinwire {

enum class OperationKind {
  all_reduce,
  reduce_scatter,
  all_gather,
  all_to_all,
  broadcast,
  barrier,
  split,
};

const char* name(OperationKind kind);

// One call on one rank. Counts are in elements and never empty (equal shares are written out).
struct Operation {
  OperationKind kind = OperationKind::barrier;
  ReduceOp op = ReduceOp::sum;
  at::Tensor input;  // all_reduce and broadcast work in place: input and output are the same
  at::Tensor output;
  Counts input_counts;   // per rank: shares of the input (reduce_scatter, all_to_all)
  Counts output_counts;  // per rank: shares of the output (all_gather, all_to_all); for all_reduce
                         // and broadcast the shares in which the work is split
  int root = 0;

  // "all_reduce of 1000 float"
  std::string describe() const;
};

// Makes the call's description, with counts filled in, and checks it against the contract of
// Communicator; throws `Bug` where it is broken.
Operation make_all_reduce(at::Tensor tensor, ReduceOp op, int size);
Operation make_reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op, Counts counts,
                              int rank, int size);
Operation make_all_gather(at::Tensor output, at::Tensor input, Counts counts, int rank, int size);
Operation make_all_to_all(at::Tensor output, at::Tensor input, Counts output_counts,
                          Counts input_counts, int size);
Operation make_broadcast(at::Tensor tensor, int root, int size);

// What a rank may tell another of its call, as plain data.
struct CallSummary {
  OperationKind kind = OperationKind::barrier;
  ReduceOp op = ReduceOp::sum;
  std::int32_t dtype = -1;  // none
  std::int32_t root = 0;
  std::int64_t numel = 0;  // of the input
  // What goes to the other and comes from it: elements of an all_to_all, else the shares of all
  // ranks as one number.
  std::uint64_t gives = 0;
  std::uint64_t takes = 0;

  std::string describe() const;
  // A hash of all that a message to the other is part of, and one of what comes from it: this
  // rank's `giving` is the other's `taking` where the calls match.
  std::uint64_t giving() const;
  std::uint64_t taking() const;
};

// A call without its tensors.
class CallRecord {
 public:
  CallRecord() = default;
  explicit CallRecord(const Operation& call);
  // As it is to be told to the rank `peer`.
  CallSummary towards(int peer) const;
  std::string describe() const { return same_.describe(); }

 private:
  CallSummary same_;  // for all peers
  Counts gives_;      // of an all_to_all
  Counts takes_;
};

// Empty where two ranks' calls, each as told to the other, may meet in one operation; else a
// sentence: "rank 0 called barrier, rank 1 called all_reduce of 4 Float; every rank must ...".
std::string disagreement(const CallSummary& a, int rank_a, const CallSummary& b, int rank_b);

// What others say who are in `operation` when `rank` has left.
std::string left_before(int rank, const std::string& operation);

// A communicator whose operations all come through one function: what backends and decorators
// derive from.
class OperationCommunicator : public Communicator {
 public:
  using Communicator::Communicator;

  std::unique_ptr<Work> all_reduce(at::Tensor tensor, ReduceOp op) final;
  std::unique_ptr<Work> reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op,
                                       Counts counts) final;
  std::unique_ptr<Work> all_gather(at::Tensor output, at::Tensor input, Counts counts) final;
  std::unique_ptr<Work> all_to_all(at::Tensor output, at::Tensor input, Counts output_counts,
                                   Counts input_counts) final;
  std::unique_ptr<Work> broadcast(at::Tensor tensor, int root) final;
  std::unique_ptr<Work> barrier() final;

 protected:
  // `call` is checked and its counts are filled in; never `split`.
  virtual std::unique_ptr<Work> post(Operation call) = 0;
};

// Calls on `communicator` what `call` describes; for decorators.
std::unique_ptr<Work> forward(Communicator& communicator, const Operation& call);

// Prefix sums: where each rank's share starts; one longer than `counts`.
Counts offsets_of(const Counts& counts);

// Bytes that `rank` sends for `operation` with direct algorithms: a share to each peer that needs
// it; all_reduce is reduce_scatter and all_gather, broadcast is scatter and all_gather.
std::int64_t direct_bytes_sent(const Operation& operation, int rank, int size);

// Whose terms a sum of `owner`'s share takes up in a step, 0 to size - 1: it begins with the rank
// behind the owner and ends with the owner, so that it can grow on its way round a ring. Backends
// that add in this order have equal bits, however they send.
inline int ring_order(int owner, int step, int size) {
  return (owner + 1 + step) % size;
}

// into := op(into, from), element by element, on host memory.
void reduce_into(at::ScalarType dtype, ReduceOp op, void* into, const void* from,
                 std::int64_t count);

}  // namespace thinwire
