// One operation as NCCL calls.
#pragma once

#include <cstdint>

#include "collectives/nccl/nccl_api.h"
#include "collectives/nccl/nccl_communicator.h"
#include "collectives/operation.h"

namespace thinwire {

// Where the calls go, and how they are made.
struct NcclWire {
  const NcclApi& nccl;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  int rank = 0;
  int size = 1;
  std::int64_t max_elements_per_call = 0;
  AllToAllPath all_to_all = AllToAllPath::send_receive;
  void* barrier_byte = nullptr;  // in device memory
};

// Issues `call` as a group of calls, so that they progress together and are one kernel. The result
// may be ncclInProgress.
ncclResult_t issue_nccl_calls(const Operation& call, const NcclWire& wire);

}  // namespace thinwire
