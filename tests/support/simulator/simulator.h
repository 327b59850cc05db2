// GPUs and a network between them that exist only in this process: what stands behind CudaApi and
// NcclApi in tests.
//
// Ranks are threads, each with a device of its own. Streams are queues. What is enqueued runs late:
// when some thread waits or asks, in an order drawn from a seed among those that streams and events
// allow. Device memory is host memory; the output of what has not run yet is filled with ones bits
// (NaN) where nothing else may still use it. Collectives really reduce. NCCL calls say
// ncclInProgress as often as not, and do nothing until they have been polled. So code that forgets
// a wait reads garbage on some seed, and code that does not poll stands still.
//
// Stricter than CUDA: a thread must set its device before its first call; a copy reads its source
// when it runs, also from pageable memory; the default stream synchronises with no other; NCCL is
// told of no call while it is in progress.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/cuda/cuda_api.h"
#include "collectives/nccl/nccl_api.h"

namespace thinwire::testing {

// A place in the source that waits for a stream or an event.
struct WaitSite {
  std::string file;
  unsigned line = 0;
  auto operator<=>(const WaitSite&) const = default;
};

// A piece of device memory.
struct Range {
  const void* data = nullptr;
  std::size_t bytes = 0;
};

struct SimulatorOptions {
  int devices = 1;
  std::uint64_t seed = 0;
  // A wait during which nothing at all happens for so long is reported as a deadlock, and fails.
  std::chrono::milliseconds hang_limit{60000};
};

// The simulated machine; one at a time in a process, because C functions carry no context.
class Simulator {
 public:
  explicit Simulator(SimulatorOptions options);
  // What has not run never will.
  ~Simulator();
  Simulator(const Simulator&) = delete;
  Simulator& operator=(const Simulator&) = delete;

  // Tables that work while this object lives.
  const CudaApi& cuda() const { return cuda_; }
  const NcclApi& nccl() const { return nccl_; }

  // Enqueues a kernel. Given what it reads and writes (and nothing else), its outputs are garbage
  // until it runs. `body` runs under the simulator's lock: it may not call it.
  void enqueue_kernel(cudaStream_t stream, std::function<void()> body);
  void enqueue_kernel(cudaStream_t stream, std::function<void()> body, std::vector<Range> reads,
                      std::vector<Range> writes);

  // Every wait made at `site` from now on is left out.
  void ignore_wait(const WaitSite& site);
  // The places that have waited so far.
  std::vector<WaitSite> wait_sites() const;

  // Nothing runs on `device` any more.
  void stall(int device);
  // The NCCL communicators of `device` report `error` from now on.
  void break_communicators(int device, ncclResult_t error);
  // NCCL communicators of `device` cannot be made from now on.
  void refuse_communicators(int device, ncclResult_t error);
  // NCCL calls of `device` return `error`, and no communicator's state tells of it.
  void refuse_calls(int device, ncclResult_t error);
  // A device runs its NCCL kernels one after the other, in the order in which they were enqueued:
  // what a real one may do, and what makes it matter that this order is the same on all ranks.
  void run_one_nccl_kernel_at_a_time();
  // All communicators report a lost peer: gets every rank out, after one failed.
  void break_all();

  // What the code under test did wrong so far: mismatched collectives, calls that are not allowed,
  // deadlocks.
  std::vector<std::string> failures() const;
  // What has been made and not been destroyed.
  std::vector<std::string> leaks() const;

 private:
  CudaApi cuda_;
  NcclApi nccl_;
};

}  // namespace thinwire::testing
