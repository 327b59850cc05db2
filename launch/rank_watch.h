// What a rank does when another one is lost, and what it leaves behind when it fails.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "collectives/communicator.h"
#include "launch/signals.h"
#include "runtime/watch/flight_recorder.h"
#include "runtime/watch/lifeline.h"

namespace thinwire {

struct RankWatchParts {
  int rank = 0;
  const FlightRecorder& recorder;
  SignalWatcher& signals;
  std::string output;  // where `flight/rank-<rank>.json` goes
  // Whether `output` still belongs to this run. Asked from any thread, once the first step has
  // begun.
  std::function<bool()> owns_output;
  // Ends every wait of this rank's communicators; safe from any thread.
  std::function<void(const std::string& reason)> abort;
};

// Ties a rank's lifeline, flight recorder and signals together. All parts must outlive it.
//
// When the lifeline says that a rank is lost, this rank says so on stderr at once, because
// launchers kill all processes a second or two after a death. Then it aborts the communicators and
// writes the flight recorder. A later SIGTERM asks for no checkpoint.
class RankWatch {
 public:
  // Ranks that are threads of one process need no lifeline.
  explicit RankWatch(RankWatchParts parts) : parts_(std::move(parts)) {}

  // Collective, for ranks that are processes. Where no lifeline can be had the run goes on without
  // one, and every rank gets the same text to tell the user; otherwise the text is empty.
  std::string connect(Communicator& communicator, const Lifeline::Access& access,
                      std::chrono::milliseconds timeout);

  // This rank ends because the run ends on all ranks.
  void goodbye();
  // For the handler that has caught `error`: tells the other ranks if they cannot know, writes the
  // flight recorder, and rethrows. A `PeerLost` is thrown again with what is known of the cause, as
  // `PeerLostSaid` if the user has been told that already.
  [[noreturn]] void rethrow(const std::exception& error);

 private:
  void on_lost(const std::string& reason);
  void write(const std::string& reason);

  RankWatchParts parts_;
  std::mutex writing_;
  bool written_ = false;                // guarded by `writing_`
  std::unique_ptr<Lifeline> lifeline_;  // last: its thread uses the others
};

}  // namespace thinwire
