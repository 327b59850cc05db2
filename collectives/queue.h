// Where a rank's work on gradients is put.
#pragma once

#include <cstddef>
#include <memory>
#include <source_location>

#include "collectives/communicator.h"
#include "collectives/stream.h"

namespace thinwire {

// A place where work runs in the order in which it is put there: at once on the host, or later on a
// stream of a device. One thread at a time may use a queue; `mark` alone may be called while
// another thread enqueues. `where` is the caller's place, by which tests tell waits apart.
class Queue {
 public:
  // A point in a queue: what was enqueued before it.
  class Mark {
   public:
    Mark() = default;
    virtual ~Mark() = default;
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;
  };

  Queue() = default;
  virtual ~Queue() = default;
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Before a thread's first use of the queue: makes the queue's device the thread's.
  virtual void attach_thread() = 0;
  // Whether everything runs at once, on host memory.
  virtual bool on_host() const = 0;
  // What runs the kernels that are put here.
  virtual Executor executor() const = 0;

  virtual std::shared_ptr<const Mark> mark() = 0;
  // What is enqueued here from now on runs after everything before `mark`, which is another queue's
  // of the same kind. The host goes on at once.
  virtual void wait_for(const Mark& mark,
                        const std::source_location& where = std::source_location::current()) = 0;
  // Blocks the host until everything enqueued so far has run. Throws `PeerLost` when `deadline`
  // passes first or the group whose operations are enqueued here has failed.
  virtual void synchronize(Deadline deadline,
                           const std::source_location& where = std::source_location::current()) = 0;

  // Both may be host or device memory and must stay until the copy has run.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill(void* to, int byte, std::size_t bytes) = 0;
  // Host memory that a copy from the device can be enqueued to.
  virtual std::shared_ptr<void> host_memory(std::size_t bytes) = 0;
};

// Everything runs at once, kernels on the threads of `team` (null: on the calling thread alone). A
// team may be of several queues.
std::unique_ptr<Queue> make_host_queue(std::shared_ptr<Team> team = nullptr);

}  // namespace thinwire
