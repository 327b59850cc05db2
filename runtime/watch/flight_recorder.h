// What a rank is doing and what it did last, for whoever asks why it has stopped.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>

#include "collectives/metered.h"
#include "runtime/checkpoint/file_system.h"

namespace thinwire {

// What a rank is doing. Ranks run the same operations in the same order, so their counts compare.
struct Activity {
  std::int64_t step = 0;           // counts from 1; 0 before the first
  std::string doing = "starting";  // between operations, e.g. "computing"
  std::int64_t operations = 0;     // begun so far
  std::string operation;           // the last begun: "all_to_all of bucket 2"
  std::optional<std::chrono::milliseconds> waiting = {};  // since when; none if it does not wait

  bool operator==(const Activity&) const = default;
};

// "step 41, waiting 0.3 s in all_to_all of bucket 2 (operation 812)", or
// "step 41, computing after all_to_all of bucket 2 (operation 812)".
std::string describe(const Activity& activity);

// The last operations of a rank and what it is doing now. Safe from several threads.
class FlightRecorder final : public OperationObserver {
 public:
  explicit FlightRecorder(int rank, std::size_t capacity = 1000)
      : rank_(rank), capacity_(capacity) {}

  // Operations that begin from now on belong to this step, and to this bucket if there is one.
  void set_step(std::int64_t step);
  void set_bucket(std::optional<std::int64_t> bucket);
  // What is done between operations from now on; returns what was done before.
  std::string set_doing(std::string doing);

  void begun(const OperationRecord& operation) override;
  void waiting(const OperationRecord& operation) override;
  void ended(const OperationRecord& operation) override;

  Activity activity() const;

  // {"rank", "reason", "time" (UTC), "now", "step", "doing", "operations": [...]}, the operations
  // oldest first, each with sequence, name, bytes (of the input), bytes_sent, bucket, step, start
  // and end. Times are seconds of the machine's monotonic clock, the same for all its processes.
  // "end" is null while an operation is in flight, "bucket" where there is none.
  std::string json(const std::string& reason) const;

 private:
  struct Entry {
    OperationRecord operation;
    std::optional<std::int64_t> bucket;
    std::int64_t step = 0;
    bool ended = false;
  };

  const int rank_;
  const std::size_t capacity_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;
  std::int64_t step_ = 0;
  std::optional<std::int64_t> bucket_;
  std::string doing_ = "starting";
  std::int64_t begun_ = 0;
  std::int64_t waiting_for_ = 0;  // sequence of the operation that is waited for; 0: none
  Clock::time_point waiting_since_;
};

// While this object lives, `recorder` says that the rank does `what` between operations. `recorder`
// may be null.
class Doing {
 public:
  Doing(FlightRecorder* recorder, const char* what)
      : recorder_(recorder), before_(recorder ? recorder->set_doing(what) : "") {}
  ~Doing() {
    if (recorder_) recorder_->set_doing(before_);
  }
  Doing(const Doing&) = delete;
  Doing& operator=(const Doing&) = delete;

 private:
  FlightRecorder* recorder_;
  std::string before_;
};

// Writes `output`/flight/rank-<rank>.json. Throws `IoError`.
void write_flight(FileSystem& files, const std::string& output, int rank,
                  const FlightRecorder& recorder, const std::string& reason);

}  // namespace thinwire
