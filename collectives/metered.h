// What communication costs, counted.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "collectives/communicator.h"

namespace thinwire {

// One finished operation, as an observer sees it.
struct OperationRecord {
  std::string name;             // e.g. "all_to_all"
  std::int64_t bytes_sent = 0;  // on the wire, by this rank
  Clock::time_point start;      // the call
  Clock::time_point end;        // its wait returned
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
  // `observer` sees every finished operation, on the thread that waited for it.
  explicit Meter(std::function<void(const OperationRecord&)> observer = {})
      : observer_(std::move(observer)) {}

  void record(const OperationRecord& record, std::int64_t bytes_logical);
  Traffic total() const;

 private:
  std::function<void(const OperationRecord&)> observer_;
  mutable std::mutex mutex_;
  Traffic total_;
};

// Decorator: reports every operation to `meter`, also those of groups split off from it.
std::unique_ptr<Communicator> make_metered(std::unique_ptr<Communicator> inner,
                                           std::shared_ptr<Meter> meter);

}  // namespace thinwire
