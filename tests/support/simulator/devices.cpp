#include "tests/support/simulator/devices.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace thinwire::testing {
namespace {

bool overlap(const Range& a, const Range& b) {
  const auto* from = static_cast<const char*>(a.data);
  const auto* other = static_cast<const char*>(b.data);
  return from < other + b.bytes && other < from + a.bytes;
}

bool touches(const std::vector<Range>& ranges, const Range& range) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const Range& other) { return overlap(other, range); });
}

}  // namespace

Devices::Devices(SimulatorOptions simulator_options)
    : options(simulator_options), random_(simulator_options.seed) {
  for (int device = 0; device < options.devices; ++device) {
    default_streams.push_back(std::make_unique<SimulatedStream>());
    default_streams.back()->device = device;
    default_streams.back()->priority = draw(1000);
  }
}

std::uint64_t Devices::draw(std::uint64_t bound) {
  return random_() % bound;
}

void Devices::fail(const std::string& what) {
  failures.push_back(what);
  progress();
}

void Devices::progress() {
  ++progress_;
  changed_.notify_all();
}

SimulatedStream* Devices::stream(cudaStream_t handle) {
  if (handle == nullptr) {
    const int current = device();
    return current < 0 ? nullptr : default_streams[static_cast<std::size_t>(current)].get();
  }
  const auto found = streams.find(handle);
  if (found != streams.end() && !found->second->destroyed) return found->second.get();
  fail("a stream was used that does not exist (any more)");
  return nullptr;
}

SimulatedEvent* Devices::event(cudaEvent_t handle) {
  const auto found = events.find(handle);
  if (found != events.end()) return found->second.get();
  fail("an event was used that does not exist (any more)");
  return nullptr;
}

std::vector<SimulatedStream*> Devices::all_streams() {
  std::vector<SimulatedStream*> all;
  for (const auto& stream : default_streams) all.push_back(stream.get());
  for (const auto& [handle, stream] : streams) all.push_back(stream.get());
  return all;
}

bool Devices::in_use(const Range& range) {
  for (const SimulatedStream* stream : all_streams()) {
    for (const Task& task : stream->tasks) {
      if (touches(task.reads, range) || touches(task.writes, range)) return true;
    }
  }
  return false;
}

bool Devices::whole_is_known() {
  for (const SimulatedStream* stream : all_streams()) {
    for (const Task& task : stream->tasks) {
      if (!task.known) return false;
    }
  }
  return true;
}

void Devices::enqueue(SimulatedStream& stream, Task task) {
  // Nothing reads an output before its task has run, unless a task before it still uses the memory.
  for (const Range& output : task.writes) {
    if (output.bytes == 0 || touches(task.reads, output)) continue;
    if (!whole_is_known() || in_use(output)) continue;
    std::memset(const_cast<void*>(output.data), 0xff, output.bytes);
  }
  stream.tasks.push_back(std::move(task));
  progress();
}

bool Devices::run_one() {
  std::vector<SimulatedStream*> heads;
  for (SimulatedStream* stream : all_streams()) {
    if (stream->tasks.empty() || stalled.count(stream->device) > 0) continue;
    if (stream->tasks.front().arrive) stream->tasks.front().arrive();
    heads.push_back(stream);
  }
  std::vector<SimulatedStream*> able;
  for (SimulatedStream* stream : heads) {
    const Task& task = stream->tasks.front();
    if (!task.ready || task.ready()) able.push_back(stream);
  }
  if (able.empty()) return false;
  // Half of the seeds let one stream run far ahead of another; the priorities change now and then.
  SimulatedStream* chosen = able[draw(able.size())];
  if (options.seed % 2 == 1) {
    chosen = *std::max_element(able.begin(), able.end(), [](const auto* a, const auto* b) {
      return a->priority < b->priority;
    });
    if (draw(16) == 0) chosen->priority = draw(1000);
  }
  Task task = std::move(chosen->tasks.front());
  chosen->tasks.pop_front();
  if (chosen->destroyed && chosen->tasks.empty()) {
    std::erase_if(streams, [&](const auto& entry) { return entry.second.get() == chosen; });
  }
  if (task.run) task.run();
  task.done->done = true;
  progress();
  return true;
}

void Devices::run_some() {
  for (std::uint64_t left = draw(4); left > 0 && run_one(); --left) {
  }
}

bool Devices::run_until(std::unique_lock<std::mutex>& lock, const std::function<bool()>& reached,
                        const std::string& what) {
  while (!reached()) {
    if (run_one()) {
      // Other threads get in, and enqueue.
      lock.unlock();
      lock.lock();
      continue;
    }
    const std::uint64_t seen = progress_;
    if (changed_.wait_for(lock, options.hang_limit, [&] { return progress_ != seen; })) continue;
    std::string queues;
    for (const SimulatedStream* stream : all_streams()) {
      if (stream->tasks.empty()) continue;
      queues += fmt::format("; device {}: {}{}", stream->device, stream->tasks.front().what,
                            stalled.count(stream->device) > 0 ? " (stalled)" : "");
    }
    fail(fmt::format("deadlock: {} waits, and nothing can run{}", what, queues));
    return false;
  }
  return true;
}

}  // namespace thinwire::testing
