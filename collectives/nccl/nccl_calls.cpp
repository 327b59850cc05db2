#include "collectives/nccl/nccl_calls.h"

#include <algorithm>
#include <functional>

namespace thinwire {
namespace {

ncclDataType_t data_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    case at::kInt:
      return ncclInt32;
    case at::kLong:
      return ncclInt64;
    case at::kChar:
      return ncclInt8;
    default:  // bytes and bool: `make_...` has refused all others
      return ncclUint8;
  }
}

ncclRedOp_t reduction(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return ncclSum;
    case ReduceOp::min:
      return ncclMin;
    case ReduceOp::max:
      return ncclMax;
  }
  return ncclSum;
}

// A group of NCCL calls; remembers the first that failed, because a group must be ended.
class Calls {
 public:
  Calls(const NcclWire& wire, ncclDataType_t type, std::int64_t width)
      : wire_(wire), type_(type), width_(width), result_(wire.nccl.group_start()) {}

  ncclResult_t end() {
    const ncclResult_t ended = wire_.nccl.group_end();
    return result_ == ncclSuccess ? ended : result_;
  }

  void add(const Operation& call) {
    switch (call.kind) {
      case OperationKind::barrier:
        return all_reduce(wire_.barrier_byte, 1, ncclMax);
      case OperationKind::all_reduce:
        return all_reduce(call.output.data_ptr(), call.output.numel(), reduction(call.op));
      case OperationKind::reduce_scatter:
        return reduce_scatter(call);
      case OperationKind::all_gather:
        return all_gather(call);
      case OperationKind::all_to_all:
        return all_to_all(call);
      case OperationKind::broadcast:
        return broadcast(call.output.data_ptr(), call.output.data_ptr(), call.output.numel(),
                         call.root);
      case OperationKind::split:
        return;
    }
  }

 private:
  void keep(ncclResult_t result) {
    if (result_ == ncclSuccess && result != ncclInProgress) result_ = result;
  }
  static bool all_equal(const Counts& counts) {
    return std::adjacent_find(counts.begin(), counts.end(), std::not_equal_to<>()) == counts.end();
  }
  // Equal shares that fit one call. All ranks have the same counts, so all choose alike.
  bool native(const Counts& counts) const {
    return all_equal(counts) && counts.front() <= wire_.max_elements_per_call;
  }
  // body(byte offset, elements) for each piece of `count` elements.
  template <typename Body>
  void pieces(std::int64_t count, Body body) {
    const std::int64_t most = wire_.max_elements_per_call;
    for (std::int64_t done = 0; done < count; done += most) {
      body(done * width_, static_cast<std::size_t>(std::min(most, count - done)));
    }
  }
  static char* bytes(void* data) { return static_cast<char*>(data); }
  static const char* bytes(const void* data) { return static_cast<const char*>(data); }
  std::int64_t rank() const { return wire_.rank; }

  void all_reduce(void* data, std::int64_t count, ncclRedOp_t op) {
    pieces(count, [&](std::int64_t at, std::size_t elements) {
      keep(wire_.nccl.all_reduce(bytes(data) + at, bytes(data) + at, elements, type_, op,
                                 wire_.comm, wire_.stream));
    });
  }

  void broadcast(const void* from, void* to, std::int64_t count, int root) {
    pieces(count, [&](std::int64_t at, std::size_t elements) {
      // `from` is the root's; elsewhere it is never read, but must not be null.
      keep(wire_.nccl.broadcast(bytes(from) + at, bytes(to) + at, elements, type_, root, wire_.comm,
                                wire_.stream));
    });
  }

  // Uneven shares: one ncclReduce for each. Padding would need scratch memory and send more, and
  // sending to the owner would need room for all ranks' shares and a kernel that adds them.
  void reduce_scatter(const Operation& call) {
    const ncclRedOp_t op = reduction(call.op);
    if (native(call.input_counts)) {
      if (call.input.numel() == 0) return;
      keep(wire_.nccl.reduce_scatter(call.input.data_ptr(), call.output.data_ptr(),
                                     static_cast<std::size_t>(call.output.numel()), type_, op,
                                     wire_.comm, wire_.stream));
      return;
    }
    const Counts offsets = offsets_of(call.input_counts);
    for (int root = 0; root < wire_.size; ++root) {
      const auto share = static_cast<std::size_t>(root);
      const char* from = bytes(call.input.data_ptr()) + offsets[share] * width_;
      pieces(call.input_counts[share], [&](std::int64_t at, std::size_t elements) {
        void* to = root == rank() ? bytes(call.output.data_ptr()) + at : nullptr;
        keep(wire_.nccl.reduce(from + at, to, elements, type_, op, root, wire_.comm, wire_.stream));
      });
    }
  }

  // Uneven shares: one ncclBroadcast for each, so that NCCL still chooses the route.
  void all_gather(const Operation& call) {
    if (native(call.output_counts)) {
      if (call.output.numel() == 0) return;
      keep(wire_.nccl.all_gather(call.input.data_ptr(), call.output.data_ptr(),
                                 static_cast<std::size_t>(call.input.numel()), type_, wire_.comm,
                                 wire_.stream));
      return;
    }
    const Counts offsets = offsets_of(call.output_counts);
    for (int root = 0; root < wire_.size; ++root) {
      const auto share = static_cast<std::size_t>(root);
      char* to = bytes(call.output.data_ptr()) + offsets[share] * width_;
      broadcast(root == rank() ? call.input.data_ptr() : to, to, call.output_counts[share], root);
    }
  }

  void all_to_all(const Operation& call) {
    if (wire_.all_to_all == AllToAllPath::native_if_equal && native(call.input_counts) &&
        call.input_counts == call.output_counts) {
      if (call.input.numel() == 0) return;
      keep(wire_.nccl.all_to_all(call.input.data_ptr(), call.output.data_ptr(),
                                 static_cast<std::size_t>(call.input_counts.front()), type_,
                                 wire_.comm, wire_.stream));
      return;
    }
    const Counts from = offsets_of(call.input_counts);
    const Counts to = offsets_of(call.output_counts);
    for (int peer = 0; peer < wire_.size; ++peer) {
      const auto share = static_cast<std::size_t>(peer);
      const char* outgoing = bytes(call.input.data_ptr()) + from[share] * width_;
      char* incoming = bytes(call.output.data_ptr()) + to[share] * width_;
      pieces(call.input_counts[share], [&](std::int64_t at, std::size_t elements) {
        keep(wire_.nccl.send(outgoing + at, elements, type_, peer, wire_.comm, wire_.stream));
      });
      pieces(call.output_counts[share], [&](std::int64_t at, std::size_t elements) {
        keep(wire_.nccl.recv(incoming + at, elements, type_, peer, wire_.comm, wire_.stream));
      });
    }
  }

  const NcclWire& wire_;
  ncclDataType_t type_;
  std::int64_t width_;
  ncclResult_t result_;
};

}  // namespace

ncclResult_t issue_nccl_calls(const Operation& call, const NcclWire& wire) {
  Calls calls(wire, call.input.defined() ? data_type(call.input.scalar_type()) : ncclUint8,
              call.input.defined() ? static_cast<std::int64_t>(call.input.element_size()) : 1);
  calls.add(call);
  return calls.end();
}

}  // namespace thinwire
