// How ranks that are processes notice that one of them died, stopped or fell behind, without the
// communicator, which may be what hangs.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "collectives/communicator.h"
#include "collectives/net/handshake.h"
#include "runtime/watch/flight_recorder.h"

namespace thinwire {

// One rank's end of a star of TCP connections around rank 0, with a thread of its own.
//
// The system closes a dead process's connection, so rank 0 sees a death at once. Each rank says a
// few times a second what it is doing. So rank 0 notices a rank that is silent for `timeout`; and
// when a rank waits in an operation for that long, it notices the rank that has not begun that
// operation. It then tells everybody. The others watch rank 0 in the same way. What is noticed
// first is final, because what happens afterwards follows from it.
//
// A message has about 100 bytes; there are at most four a second from each rank and one a second to
// it. Rank 0 listens until all ranks have come, and each has to prove that it belongs to the job.
// Methods are safe from any thread.
class Lifeline {
 public:
  struct Parts {
    // Between two messages of one rank to another one.
    std::chrono::milliseconds timeout{60000};
    // What this rank is doing.
    std::function<Activity()> look;
    // Called once at most, on the lifeline's thread: who was lost, how, and what both were doing.
    // "rank 3 died (its connection closed), last seen: step 41, ...; this rank: step 41,
    // ...".
    std::function<void(const std::string& reason)> on_lost;
  };

  // Who may join, and where.
  struct Access {
    net::JobIdentity identity;
    // Where rank 0 listens: a numeric address of its machine; empty: on every interface.
    std::string address;
  };

  // Rank 0's end.
  static std::unique_ptr<Lifeline> host(const Access& access, Parts parts);
  // Another rank's end: connects to the host that made `invitation`, within half the timeout or
  // ten seconds, whichever is shorter; throws `IoError`. Only half, because the others wait
  // meanwhile.
  static std::unique_ptr<Lifeline> join(const net::JobIdentity& identity, int rank,
                                        const std::string& invitation, Parts parts);

  // Without `goodbye` the others take this for the death of the rank.
  ~Lifeline();
  Lifeline(const Lifeline&) = delete;
  Lifeline& operator=(const Lifeline&) = delete;

  // The host's: where others can reach it, one line of text.
  const std::string& invitation() const;

  // This rank ends because the run ends on all ranks. Returns when the others know, within a
  // second. Nothing is noticed from then on.
  void goodbye();
  // This rank ends and the others do not know it yet: they are told that it is lost, and why.
  void fail(const std::string& why);

  // The reason that `on_lost` was given, as soon as there is one; none if `deadline` passes first.
  std::optional<std::string> lost(Deadline deadline);

 private:
  class Thread;
  explicit Lifeline(std::unique_ptr<Thread> thread);
  std::unique_ptr<Thread> thread_;
};

// Collective: the host's and the others' ends over `communicator`'s ranks. Throws `AgreedError`,
// on every rank, that names the ranks that cannot reach rank 0.
std::unique_ptr<Lifeline> make_lifeline(Communicator& communicator, const Lifeline::Access& access,
                                        Lifeline::Parts parts);

// Collective: rank 0 makes a new key and tells it to the others through the communicator. Only for
// communicators that strangers cannot listen to, such as MPI's own connections.
net::JobKey share_new_key(Communicator& communicator);

}  // namespace thinwire
