// What communication costs, counted.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "collectives/communicator.h"

namespace thinwire {

// One operation, as an observer sees it.
struct OperationRecord {
  std::string name;                // e.g. "all_to_all"
  std::int64_t bytes_sent = 0;     // on the wire, by this rank; known at the end
  Clock::time_point start;         // the call
  Clock::time_point end;           // its wait returned
  std::int64_t bytes_logical = 0;  // size of the input
  std::int64_t sequence = 0;       // the meter's operations count from 1
};

// Sees operations while they happen, on the threads on which they do.
class OperationObserver {
 public:
  virtual ~OperationObserver() = default;
  // Before the call.
  virtual void begun(const OperationRecord& operation) = 0;
  virtual void waiting(const OperationRecord& operation) = 0;
  // Not for an operation whose wait throws: it stays in flight.
  virtual void ended(const OperationRecord& operation) = 0;
};

struct Traffic {
  std::int64_t calls = 0;
  std::int64_t bytes_logical = 0;  // sizes of the inputs
  std::int64_t bytes_sent = 0;     // put on the wire by this rank, as the backend counted
  double seconds = 0;              // from call to the end of wait, summed over operations
};

// Counts the operations of the communicators that report to it. Safe from several threads.
class Meter {
 public:
  // `finished` sees every finished operation, on the thread that waited for it. `observer` sees
  // operations from their begin on; it may be null, and must outlive this.
  explicit Meter(std::function<void(const OperationRecord&)> finished = {},
                 OperationObserver* observer = nullptr)
      : finished_(std::move(finished)), observer_(observer) {}

  // What a decorator reports: an operation is called, waited for, and has ended, well or not.
  OperationRecord begin(const char* name, std::int64_t bytes_logical);
  void wait(const OperationRecord& operation);
  void end(OperationRecord operation);
  void fail();

  Traffic total() const;
  // Seconds so far in which some thread of this rank waited for an operation.
  double waited() const;

 private:
  void stop_waiting_locked();

  std::function<void(const OperationRecord&)> finished_;
  OperationObserver* observer_;
  mutable std::mutex mutex_;
  Traffic total_;
  std::int64_t sequence_ = 0;
  int waiting_ = 0;  // threads inside a wait
  Clock::time_point waiting_since_;
  Clock::duration waited_{0};
};

// Decorator: reports every operation to `meter`, also those of groups split off from it.
std::unique_ptr<Communicator> make_metered(std::unique_ptr<Communicator> inner,
                                           std::shared_ptr<Meter> meter);

}  // namespace thinwire
