// Where the time goes, for a person to look at.
#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <vector>

#include "collectives/communicator.h"

namespace thinwire {

// Collects spans of one rank and gives them as events of the Chrome trace format (open the file in
// chrome://tracing or ui.perfetto.dev). Safe from several threads.
class Trace {
 public:
  struct Span {
    std::string row;
    std::string name;
    Clock::time_point start;
    Clock::time_point end;
  };

  explicit Trace(int rank) : rank_(rank) {}

  // One span on the named row ("backward", "communication").
  void span(const std::string& row, const std::string& name, Clock::time_point start,
            Clock::time_point end);

  // All spans so far, in the order in which they ended.
  std::vector<Span> spans() const;
  // This rank's events, comma-separated JSON objects.
  std::string events() const;

 private:
  int rank_;
  mutable std::mutex mutex_;
  std::vector<Span> spans_;
};

// Collective: rank 0 writes every rank's events to `path`. Throws `IoError`, on rank 0 only.
void write_trace(const Trace& trace, Communicator& communicator, const std::string& path);

}  // namespace thinwire
