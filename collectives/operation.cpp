#include "collectives/operation.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

// floor(total * (r + 1) / size) - floor(total * r / size): sums to total, differs by at most one.
Counts equal_counts(std::int64_t total, int size) {
  Counts counts(static_cast<std::size_t>(size), total / size);
  for (int rank = 0; rank < total % size; ++rank) ++counts[static_cast<std::size_t>(rank)];
  return counts;
}

// FNV-1a over words.
constexpr std::uint64_t kMixBasis = 0xcbf29ce484222325;

std::uint64_t mix(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x100000001b3;
  return hash ^ (hash >> 29);
}

std::uint64_t mixed(std::initializer_list<std::uint64_t> words) {
  std::uint64_t hash = kMixBasis;
  for (const std::uint64_t word : words) hash = mix(hash, word);
  return hash;
}

const char* name(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return "sum";
    case ReduceOp::min:
      return "min";
    case ReduceOp::max:
      return "max";
  }
  return "unknown operation";
}

void check_tensor(const at::Tensor& tensor, std::string_view what) {
  check(tensor.defined(), fmt::format("{}: the tensor is undefined", what));
  check(tensor.is_contiguous(), fmt::format("{}: the tensor is not contiguous", what));
  switch (tensor.scalar_type()) {
    case at::kFloat:
    case at::kDouble:
    case at::kInt:
    case at::kLong:
    case at::kByte:
    case at::kChar:
    case at::kBool:
      return;
    default:
      check(false, fmt::format("{}: dtype {} cannot travel", what, toString(tensor.scalar_type())));
  }
}

// Fills in equal shares and checks that the shares add up.
Counts complete(Counts counts, std::int64_t total, int size, std::string_view what) {
  if (counts.empty()) {
    check(total % size == 0,
          fmt::format("{}: {} elements are no equal shares for {} ranks", what, total, size));
    counts.assign(static_cast<std::size_t>(size), total / size);
  }
  check_equal(counts.size(), static_cast<std::size_t>(size), what);
  check(std::all_of(counts.begin(), counts.end(), [](auto count) { return count >= 0; }),
        fmt::format("{}: a count is negative", what));
  check_equal(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}), total, what);
  return counts;
}

template <typename T>
void reduce_typed(ReduceOp op, T* __restrict into, const T* __restrict from, std::int64_t count) {
  switch (op) {
    case ReduceOp::sum:
      for (std::int64_t i = 0; i < count; ++i) into[i] = static_cast<T>(into[i] + from[i]);
      return;
    case ReduceOp::min:
      for (std::int64_t i = 0; i < count; ++i) into[i] = std::min(into[i], from[i]);
      return;
    case ReduceOp::max:
      for (std::int64_t i = 0; i < count; ++i) into[i] = std::max(into[i], from[i]);
      return;
  }
}

}  // namespace

const char* name(OperationKind kind) {
  switch (kind) {
    case OperationKind::all_reduce:
      return "all_reduce";
    case OperationKind::reduce_scatter:
      return "reduce_scatter";
    case OperationKind::all_gather:
      return "all_gather";
    case OperationKind::all_to_all:
      return "all_to_all";
    case OperationKind::broadcast:
      return "broadcast";
    case OperationKind::barrier:
      return "barrier";
    case OperationKind::split:
      return "split";
  }
  return "unknown operation";
}

std::string Operation::describe() const {
  return CallRecord(*this).describe();
}

std::string CallSummary::describe() const {
  if (dtype < 0) return name(kind);
  return fmt::format("{} of {} {}", name(kind), numel,
                     toString(static_cast<at::ScalarType>(dtype)));
}

std::uint64_t CallSummary::giving() const {
  return mixed({static_cast<std::uint64_t>(kind), static_cast<std::uint64_t>(op),
                static_cast<std::uint64_t>(dtype), static_cast<std::uint64_t>(root), gives});
}

std::uint64_t CallSummary::taking() const {
  CallSummary mirrored = *this;
  mirrored.gives = takes;
  return mirrored.giving();
}

CallRecord::CallRecord(const Operation& call) {
  same_.kind = call.kind;
  same_.op = call.op;
  same_.root = call.root;
  if (!call.input.defined()) return;
  same_.dtype = static_cast<std::int32_t>(call.input.scalar_type());
  same_.numel = call.input.numel();
  if (call.kind == OperationKind::all_to_all) {
    gives_ = call.input_counts;
    takes_ = call.output_counts;
    return;
  }
  same_.gives = kMixBasis;
  for (const Counts* counts : {&call.input_counts, &call.output_counts}) {
    for (const std::int64_t count : *counts) {
      same_.gives = mix(same_.gives, static_cast<std::uint64_t>(count));
    }
  }
  same_.takes = same_.gives;
}

CallSummary CallRecord::towards(int peer) const {
  CallSummary summary = same_;
  if (!gives_.empty()) {
    summary.gives = static_cast<std::uint64_t>(gives_[static_cast<std::size_t>(peer)]);
    summary.takes = static_cast<std::uint64_t>(takes_[static_cast<std::size_t>(peer)]);
  }
  return summary;
}

std::string disagreement(const CallSummary& a, int rank_a, const CallSummary& b, int rank_b) {
  if (rank_a > rank_b) return disagreement(b, rank_b, a, rank_a);
  const bool same_op = a.op == b.op;
  const bool same_root = a.root == b.root;
  const bool same_shares = a.gives == b.takes && a.takes == b.gives;
  if (a.kind == b.kind && same_op && a.dtype == b.dtype && same_root && same_shares) return {};
  const auto called = [&](const CallSummary& call, int other) {
    std::string text = call.describe();
    if (a.kind != b.kind || a.dtype != b.dtype) return text;
    if (!same_op) text += fmt::format(" ({})", name(call.op));
    if (!same_root) text += fmt::format(" from rank {}", call.root);
    if (!same_shares && call.kind == OperationKind::all_to_all) {
      text += fmt::format(", {} to and {} from rank {}", call.gives, call.takes, other);
    }
    return text;
  };
  const bool only_shares = a.kind == b.kind && a.kind != OperationKind::all_to_all &&
                           !same_shares && a.numel == b.numel && a.dtype == b.dtype && same_op &&
                           same_root;
  return fmt::format(
      "rank {} called {}, rank {} called {}{}; every rank must call the same operations in the "
      "same order",
      rank_a, called(a, rank_b), rank_b, called(b, rank_a), only_shares ? " in other shares" : "");
}

std::string left_before(int rank, const std::string& operation) {
  return fmt::format(
      "rank {} left the group before {}, which the others are in; every rank must call the same "
      "operations",
      rank, operation);
}

Operation make_all_reduce(at::Tensor tensor, ReduceOp op, int size) {
  check_tensor(tensor, "all_reduce");
  Operation call{OperationKind::all_reduce, op, tensor, tensor, {}, {}, 0};
  call.output_counts = equal_counts(tensor.numel(), size);
  return call;
}

Operation make_reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op, Counts counts,
                              int rank, int size) {
  check_tensor(input, "reduce_scatter input");
  check_tensor(output, "reduce_scatter output");
  check(input.scalar_type() == output.scalar_type(), "reduce_scatter: dtypes differ");
  Operation call{OperationKind::reduce_scatter, op, input, output, {}, {}, 0};
  call.input_counts = complete(std::move(counts), input.numel(), size, "reduce_scatter counts");
  check_equal(output.numel(), call.input_counts[static_cast<std::size_t>(rank)],
              "reduce_scatter output size");
  return call;
}

Operation make_all_gather(at::Tensor output, at::Tensor input, Counts counts, int rank, int size) {
  check_tensor(input, "all_gather input");
  check_tensor(output, "all_gather output");
  check(input.scalar_type() == output.scalar_type(), "all_gather: dtypes differ");
  Operation call{OperationKind::all_gather, ReduceOp::sum, input, output, {}, {}, 0};
  call.output_counts = complete(std::move(counts), output.numel(), size, "all_gather counts");
  check_equal(input.numel(), call.output_counts[static_cast<std::size_t>(rank)],
              "all_gather input size");
  return call;
}

Operation make_all_to_all(at::Tensor output, at::Tensor input, Counts output_counts,
                          Counts input_counts, int size) {
  check_tensor(input, "all_to_all input");
  check_tensor(output, "all_to_all output");
  check(input.scalar_type() == output.scalar_type(), "all_to_all: dtypes differ");
  Operation call{OperationKind::all_to_all, ReduceOp::sum, input, output, {}, {}, 0};
  call.input_counts = complete(std::move(input_counts), input.numel(), size, "all_to_all input");
  call.output_counts =
      complete(std::move(output_counts), output.numel(), size, "all_to_all output");
  return call;
}

Operation make_broadcast(at::Tensor tensor, int root, int size) {
  check_tensor(tensor, "broadcast");
  check(root >= 0 && root < size, "broadcast: no such root");
  Operation call{OperationKind::broadcast, ReduceOp::sum, tensor, tensor, {}, {}, root};
  call.output_counts = equal_counts(tensor.numel(), size);
  return call;
}

std::unique_ptr<Work> OperationCommunicator::all_reduce(at::Tensor tensor, ReduceOp op) {
  return post(make_all_reduce(std::move(tensor), op, size()));
}

std::unique_ptr<Work> OperationCommunicator::reduce_scatter(at::Tensor output, at::Tensor input,
                                                            ReduceOp op, Counts counts) {
  return post(make_reduce_scatter(std::move(output), std::move(input), op, std::move(counts),
                                  rank(), size()));
}

std::unique_ptr<Work> OperationCommunicator::all_gather(at::Tensor output, at::Tensor input,
                                                        Counts counts) {
  return post(
      make_all_gather(std::move(output), std::move(input), std::move(counts), rank(), size()));
}

std::unique_ptr<Work> OperationCommunicator::all_to_all(at::Tensor output, at::Tensor input,
                                                        Counts output_counts, Counts input_counts) {
  return post(make_all_to_all(std::move(output), std::move(input), std::move(output_counts),
                              std::move(input_counts), size()));
}

std::unique_ptr<Work> OperationCommunicator::broadcast(at::Tensor tensor, int root) {
  return post(make_broadcast(std::move(tensor), root, size()));
}

std::unique_ptr<Work> OperationCommunicator::barrier() {
  return post(Operation{});
}

std::unique_ptr<Work> forward(Communicator& communicator, const Operation& call) {
  switch (call.kind) {
    case OperationKind::all_reduce:
      return communicator.all_reduce(call.input, call.op);
    case OperationKind::reduce_scatter:
      return communicator.reduce_scatter(call.output, call.input, call.op, call.input_counts);
    case OperationKind::all_gather:
      return communicator.all_gather(call.output, call.input, call.output_counts);
    case OperationKind::all_to_all:
      return communicator.all_to_all(call.output, call.input, call.output_counts,
                                     call.input_counts);
    case OperationKind::broadcast:
      return communicator.broadcast(call.output, call.root);
    case OperationKind::barrier:
      return communicator.barrier();
    case OperationKind::split:
      break;
  }
  throw Bug("bug: a split is no operation that can be forwarded");
}

Counts offsets_of(const Counts& counts) {
  Counts offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

std::int64_t direct_bytes_sent(const Operation& operation, int rank, int size) {
  if (!operation.input.defined()) return 0;
  const auto me = static_cast<std::size_t>(rank);
  const std::int64_t total = operation.input.numel();
  std::int64_t elements = 0;
  switch (operation.kind) {
    case OperationKind::all_reduce:
      elements = total - operation.output_counts[me] + operation.output_counts[me] * (size - 1);
      break;
    case OperationKind::broadcast:
      // The root scatters and then sends its own share on; the others send theirs to all but the
      // root.
      elements = rank == operation.root ? total - operation.output_counts[me] +
                                              operation.output_counts[me] * (size - 1)
                                        : operation.output_counts[me] * (size - 2);
      break;
    case OperationKind::reduce_scatter:
    case OperationKind::all_to_all:
      elements = total - operation.input_counts[me];
      break;
    case OperationKind::all_gather:
      elements = total * (size - 1);
      break;
    case OperationKind::barrier:
    case OperationKind::split:
      break;
  }
  return elements * static_cast<std::int64_t>(operation.input.element_size());
}

void reduce_into(at::ScalarType dtype, ReduceOp op, void* into, const void* from,
                 std::int64_t count) {
  const auto typed = [&]<typename T>(T*) {
    reduce_typed(op, static_cast<T*>(into), static_cast<const T*>(from), count);
  };
  switch (dtype) {
    case at::kFloat:
      return typed(static_cast<float*>(nullptr));
    case at::kDouble:
      return typed(static_cast<double*>(nullptr));
    case at::kInt:
      return typed(static_cast<std::int32_t*>(nullptr));
    case at::kLong:
      return typed(static_cast<std::int64_t*>(nullptr));
    case at::kChar:
      return typed(static_cast<std::int8_t*>(nullptr));
    default:
      return typed(static_cast<std::uint8_t*>(nullptr));
  }
}

}  // namespace thinwire
