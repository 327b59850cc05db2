#include "collectives/operation.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "runtime/base/error.h"

namespace thinwire {
namespace {

// floor(total * (r + 1) / size) - floor(total * r / size): sums to total, differs by at most one.
Counts equal_counts(std::int64_t total, int size) {
  Counts counts(static_cast<std::size_t>(size), total / size);
  for (int rank = 0; rank < total % size; ++rank) ++counts[static_cast<std::size_t>(rank)];
  return counts;
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
  if (!input.defined()) return name(kind);
  return fmt::format("{} of {} {}", name(kind), input.numel(), toString(input.scalar_type()));
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
