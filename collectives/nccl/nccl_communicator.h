// Ranks as CUDA devices that speak NCCL.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <string_view>

#include "collectives/cuda/cuda_api.h"
#include "collectives/nccl/nccl_api.h"
#include "collectives/operation.h"

namespace thinwire {

// How all_to_all is carried out.
enum class AllToAllPath {
  // Grouped ncclSend and ncclRecv: any counts.
  send_receive,
  // ncclAlltoAll where all of a rank's counts are equal. Only for groups in which every rank gives
  // the same input counts, as a two-stage exchange does: a rank sees its own counts alone, and all
  // must choose alike.
  native_if_equal,
};

// True for a tensor that lies in device memory.
bool on_cuda_device(const at::Tensor& tensor);

struct NcclOptions {
  std::chrono::milliseconds timeout{60000};
  // The stream on which the caller's tensors are made and used. Null: the default stream.
  cudaStream_t stream = nullptr;
  // Larger calls go in pieces. Tests use a tiny one.
  std::int64_t max_elements_per_call = std::int64_t{1} << 30;
  AllToAllPath all_to_all = AllToAllPath::send_receive;
  // Which tensors may be given; others are refused. Simulated device memory is host memory.
  bool (*is_device_tensor)(const at::Tensor&) = &on_cuda_device;
  // NCCL does not know who stalls. Asked once, at a deadline: who is missing, as far as something
  // else knows ("rank 3 is at step 7, all others at step 8"); its text ends the message.
  std::function<std::string()> explain_stall;
};

// A communicator of device tensors over NCCL.
//
// Time. An operation waits on the device, on a stream of the communicator's own (the wire), for
// what was enqueued on `NcclOptions::stream` before the call. `Work::wait` makes that stream wait
// for the operation, and returns: the host does not block, and what the caller enqueues on that
// stream afterwards sees the result. Only a barrier's wait blocks the host. A tensor that another
// stream uses is the caller's to order with events.
//
// Errors. Because no wait blocks, a peer that stalls is noticed by whoever looks next after the
// operation's deadline: every call on the communicator, every `Work::wait`, `poll` and
// `host_wait`. The one that notices aborts the NCCL communicator, which ends its kernels, and
// throws `PeerLost`; results on the device are garbage then. A training step must therefore end
// with `host_wait` (for the verdict), not with cudaStreamSynchronize, which would wait for ever.
// Calling an operation can block too where a stalled one has filled the device's queue: a watchdog
// on another thread calls `abort`, which gets it out.
//
// Sums: the same bits on all ranks, in an order of NCCL's choosing. `bytes_sent` is what a direct
// algorithm sends (`direct_bytes_sent`); NCCL does not tell what it sent.
//
// Several groups on one device: their operations run on streams of their own, but a device may hold
// no more than one NCCL kernel at a time, so that one that waits for its peers keeps the others
// from running. Callers therefore keep one order per device: operations of all groups that a device
// is in are called in the same order on all ranks, from one thread or under one lock. Where ranks
// call them in different orders they may wait for each other until the timeout.
//
// Threads: the caller has made the communicator's device current (cudaSetDevice) on each thread
// that calls it.
//
// Destruction flushes, for `timeout` at most, and is collective: where ranks are threads, each
// destroys its own. A rank that leaves on an error calls `abort` first.
class NcclCommunicator : public OperationCommunicator {
 public:
  using OperationCommunicator::OperationCommunicator;

  // Blocks the host, politely, until the work before `event` is done. Throws `PeerLost` at
  // `deadline`, when an operation of the group failed or passed its own deadline, or after an
  // abort. `what` names in messages what is waited for.
  virtual void host_wait(const Event& event, std::string_view what, Deadline deadline,
                         const std::source_location& where = std::source_location::current()) = 0;

  // Throws like `host_wait` if there is a reason by now; never blocks.
  virtual void poll() = 0;
};

// The bytes of a fresh ncclUniqueId: one rank makes it, all ranks of the group need it. Throws
// `Error`.
std::string make_nccl_id(const NcclApi& nccl);

// Joins the group of `size` ranks that have the same `id`, on the device that is current.
// Collective; blocks until all are there. Throws `Error` where the device or NCCL cannot be used,
// `PeerLost` at the timeout. The tables must outlive the communicator and its works.
std::unique_ptr<NcclCommunicator> make_nccl_communicator(const std::string& id, int rank, int size,
                                                         NcclOptions options, const NcclApi& nccl,
                                                         const CudaApi& cuda);

}  // namespace thinwire
