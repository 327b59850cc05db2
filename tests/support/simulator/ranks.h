// Ranks as threads, each with a simulated device and an NCCL communicator between them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/nccl/nccl_communicator.h"
#include "tests/support/simulator/simulator.h"

namespace thinwire::testing {

// What the body of one rank works with.
struct DeviceRank {
  Simulator& simulator;
  cudaStream_t stream;  // the caller's; not the default stream
  NcclCommunicator& communicator;
  int rank() const { return communicator.rank(); }
  int size() const { return communicator.size(); }
};

// Simulated device memory is host memory.
bool any_tensor(const at::Tensor& tensor);

// Runs `body` on `size` ranks, device i for rank i. Returns each rank's error text ("" where there
// was none); the first error gets the other ranks out.
std::vector<std::string> run_on_devices(Simulator& simulator, int size, NcclOptions options,
                                        const std::function<void(const DeviceRank&)>& body);

// For tests that know nothing of devices: operations on host tensors. Inputs are copied to the
// device by the caller's stream, and `wait` copies the outputs back the same way and then waits for
// that stream, so a wait that is missing below shows in the result.
std::unique_ptr<Communicator> make_host_view(const DeviceRank& rank);

}  // namespace thinwire::testing
