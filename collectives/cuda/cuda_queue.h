// A CUDA stream as a queue.
#pragma once

#include <functional>
#include <memory>

#include "collectives/cuda/cuda_api.h"
#include "collectives/queue.h"

namespace thinwire {

// A queue on the device that is current in the calling thread; null is its default stream, which
// does not wait for other queues by itself. `poll` is called while the host waits and leaves the
// wait by throwing: when the group whose operations are enqueued here has failed. `attach` is
// called by `attach_thread`: to make the stream the thread's for libtorch too, whose allocator
// gives memory to one stream. `api` must outlive the queue; the stream is not owned.
std::unique_ptr<Queue> make_cuda_queue(
    const CudaApi& api, StreamHandle stream, std::function<void()> poll = [] {},
    std::function<void()> attach = [] {});

}  // namespace thinwire
