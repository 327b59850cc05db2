// The simulator's devices: streams, events and memory, and the order in which things run.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/support/simulator/simulator.h"

namespace thinwire::testing {

// Done, or not yet.
struct Token {
  bool done = false;
};

// One entry of a stream.
struct Task {
  std::string what;
  std::function<void()> arrive;  // called each time it is looked at, at the head of its stream
  std::function<bool()> ready;   // may it run? Empty: yes
  std::function<void()> run;
  std::vector<Range> reads;
  std::vector<Range> writes;
  bool known = true;  // reads and writes are all that it touches
  std::shared_ptr<Token> done = std::make_shared<Token>();
};

struct SimulatedStream {
  int device = 0;
  std::uint64_t priority = 0;
  bool destroyed = false;
  std::deque<Task> tasks;
};

struct SimulatedEvent {
  int device = 0;
  std::shared_ptr<Token> recorded;  // null before the first record
};

// All state of the simulator but NCCL's. Everything needs `mutex`, which the callers lock.
class Devices {
 public:
  explicit Devices(SimulatorOptions options);

  std::mutex mutex;

  // Device of the calling thread; a failure, and -1, where none was set.
  int device();
  // The stream behind the handle, or null and a failure.
  SimulatedStream* stream(cudaStream_t handle);
  SimulatedEvent* event(cudaEvent_t handle);

  void enqueue(SimulatedStream& stream, Task task);
  // Runs one task that may run; false where there is none.
  bool run_one();
  // Runs between none and three tasks.
  void run_some();
  // Runs, and waits for others, until `reached`; false after the hang limit.
  bool run_until(std::unique_lock<std::mutex>& lock, const std::function<bool()>& reached,
                 const std::string& what);
  // Something happened: whoever waits looks again.
  void progress();
  // A number below `bound`.
  std::uint64_t draw(std::uint64_t bound);
  void fail(const std::string& what);

  const SimulatorOptions options;
  std::map<void*, std::unique_ptr<SimulatedStream>> streams;  // with the destroyed that still run
  std::vector<std::unique_ptr<SimulatedStream>> default_streams;
  std::map<void*, std::unique_ptr<SimulatedEvent>> events;
  std::map<void*, std::vector<char>> device_memory;
  std::map<void*, std::vector<char>> pinned_memory;
  std::vector<std::vector<char>> freed;  // kept: what still runs may write to it
  std::set<int> stalled;
  std::vector<std::string> failures;

 private:
  std::vector<SimulatedStream*> all_streams();
  bool in_use(const Range& range);
  bool whole_is_known();

  std::condition_variable changed_;
  std::mt19937_64 random_;
  std::uint64_t progress_ = 0;
};

}  // namespace thinwire::testing
