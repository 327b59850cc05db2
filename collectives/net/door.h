// A listener that lets in only who proves that he belongs to this job.
#pragma once

#include <poll.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "collectives/net/handshake.h"
#include "collectives/net/socket.h"

namespace thinwire::net {

// One rank's listener and the guests in front of it. Never blocks. What strangers can make it hold
// is bounded: 64 guests more than the job has connections, one message of some dozen bytes each,
// ten seconds. Where more come the oldest goes, first of those who have not named the job. A rank
// that is sent away in this way calls again.
class Door {
 public:
  // Whether this rank is awaited for this; asked of guests who have proved that they are of the
  // job.
  using Expected = std::function<bool(const Introduction&)>;
  // Takes who was let in, before anybody else is asked for.
  using Take = std::function<void(const Introduction&, Descriptor)>;

  // `identity` must outlive it.
  Door(Descriptor listener, const JobIdentity& identity, int rank);
  Door(Door&&) = delete;

  // No more guests from here on.
  void close();
  bool open() const { return listener_.open(); }
  int port() const { return local_port(listener_); }

  // What to wait for.
  void add_to(std::vector<pollfd>& polled) const;
  // Looks at the listener and at all guests.
  void admit(const Expected& expected, const Take& take);

  // "; turned away: 2 another job, 1 no rank", and whether there were no descriptors for guests; or
  // nothing.
  std::string turned_away() const;

 private:
  struct Guest {
    Guest(Descriptor connection, const JobIdentity& identity, int rank);
    Descriptor socket;
    HostSide side;
    std::array<char, 128> said{};
    std::size_t bytes = 0;
    Clock::time_point came;
  };

  void take_newcomers(const Expected& expected, const Take& take);
  void make_room();
  void serve(Guest& guest, const Expected& expected, const Take& take);
  void listen_to(Guest& guest, const Expected& expected);

  Descriptor listener_;
  const JobIdentity& identity_;
  const int rank_;
  std::deque<Guest> guests_;  // in the order in which they came
  std::map<Refusal, int> refused_;
  bool out_of_files_ = false;  // ever
  bool rests_ = false;         // after such a failure nobody is waited for until the next look
};

}  // namespace thinwire::net
