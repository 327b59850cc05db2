// A rank that trains on a GPU.
#pragma once

#include <chrono>
#include <memory>

#include "collectives/communicator.h"
#include "collectives/metered.h"
#include "launch/device.h"
#include "runtime/trainer/trainer.h"

namespace thinwire {

// How many CUDA devices this process sees; 0 where there is no driver or thinwire was built without
// CUDA.
int cuda_device_count();

// One rank's device with its streams, its kernels and what carries its gradients: NCCL, or host
// memory through the host group where ranks share a device or thinwire was built without NCCL.
class GpuRank {
 public:
  GpuRank() = default;
  virtual ~GpuRank() = default;
  GpuRank(const GpuRank&) = delete;
  GpuRank& operator=(const GpuRank&) = delete;

  virtual at::Device device() const = 0;
  virtual const TrainerDevice& trainer_device() const = 0;
  // "NCCL 2.28.9", or why not NCCL.
  virtual std::string describe() const = 0;
  // Ends every wait of this rank; safe from any thread.
  virtual void abort(const std::string& reason) = 0;
};

// Collective over `host`, which reports to `meter` and must outlive the rank. Call it on the thread
// that trains. `explain_stall` is asked who is missing when a deadline passes. Throws `UsageError`
// where ranks share a device and `policy` refuses that, `Error` where the device cannot be used.
std::unique_ptr<GpuRank> make_gpu_rank(const Device& device, SharePolicy policy, Communicator& host,
                                       std::shared_ptr<Meter> meter,
                                       std::function<std::string()> explain_stall = {});

}  // namespace thinwire
