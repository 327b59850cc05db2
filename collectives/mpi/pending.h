// What an operation over MPI holds while MPI may touch it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Storage.h>
#include <mpi.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "collectives/operation.h"
#include "collectives/transfers/transfers.h"

namespace thinwire::mpi {

enum class Direction { send, receive };

// What an MPI request is about.
struct Request {
  Direction direction = Direction::send;
  int peer = 0;
  int stream = 0;
  Transfers::Message message;
};

// Whether the tensor's memory lives as long as its storage. The memory of a `from_blob` tensor is
// the caller's, and may be gone at any time.
inline bool owns_memory(const at::Tensor& tensor) {
  return tensor.nbytes() == 0 || tensor.storage().data_ptr().get_context() != nullptr;
}

inline at::Tensor copy_of(const at::Tensor& tensor) {
  at::Tensor copy = at::empty({tensor.numel()}, tensor.options());
  std::memcpy(copy.data_ptr(), tensor.const_data_ptr(), tensor.nbytes());
  return copy;
}

// What an operation holds; outlives the Work while MPI may still touch it.
struct Pending {
  Pending(Operation its_call, int rank, int size, const TransferOptions& options)
      : call(std::move(its_call)), pool(options.message_bytes) {
    hold_memory();
    transfers = plan_transfers(call, rank, size, options, pool);
  }

  void hold_memory() {
    if (!call.input.defined()) return;
    const bool in_place = call.output.is_same(call.input);
    if (!owns_memory(call.output)) {
      result = call.output;
      call.output = copy_of(call.output);
    }
    if (in_place) {
      call.input = call.output;
    } else if (!owns_memory(call.input)) {
      call.input = copy_of(call.input);
    }
    // A tensor may be given another storage while it is in flight.
    storages = {call.input.storage(), call.output.storage()};
  }

  Operation call;
  std::array<c10::Storage, 2> storages;
  at::Tensor result;  // where the output goes in the end, if that is a copy
  BlockPool pool;
  std::unique_ptr<Transfers> transfers;
  std::vector<MPI_Request> handles;
  std::vector<Request> requests;  // of each handle

  // Called after a failure. True if MPI is through with all of the memory; if not, this object must
  // live for ever.
  bool let_go() {
    bool through = true;
    for (std::size_t i = 0; i < handles.size(); ++i) {
      if (handles[i] == MPI_REQUEST_NULL) continue;
      // Nothing more may come into the caller's tensors. What is being sent cannot be cancelled.
      if (requests[i].direction == Direction::receive) MPI_Cancel(&handles[i]);
      int ended = 0;
      through =
          MPI_Test(&handles[i], &ended, MPI_STATUS_IGNORE) == MPI_SUCCESS && ended != 0 && through;
    }
    if (through) return true;
    for (c10::Storage& storage : storages) {
      if (storage) storage.unsafeGetStorageImpl()->set_resizable(false);
    }
    return false;
  }
};

}  // namespace thinwire::mpi
