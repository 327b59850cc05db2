// Device tensors over a backend that carries host memory.
#pragma once

#include <memory>

#include "collectives/communicator.h"
#include "collectives/queue.h"

namespace thinwire {

// Decorator: every operation's input is copied to host memory behind what is in `queue`, reduced by
// `inner`, and copied back before `wait` returns. Blocks the host for the copies, so it is for
// groups that NCCL cannot serve: ranks that share a GPU as threads, and comparisons. All tensors
// are device memory. `queue` must outlive it and the groups split off from it.
std::unique_ptr<Communicator> make_staged(std::unique_ptr<Communicator> inner, Queue& queue);

}  // namespace thinwire
