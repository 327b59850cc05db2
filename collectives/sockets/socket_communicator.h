// Ranks as processes joined by plain TCP.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "collectives/communicator.h"
#include "collectives/net/handshake.h"

namespace thinwire {

namespace sockets {
class Directory;
}

// How ranks find rank 0.
enum class Meeting {
  at_rank_zero,  // it listens at meet_port of the machine meet_host
  in_store,      // a c10d TCPStore there, such as torchrun's, tells where it listens
};

// Who this rank is and where it meets the others.
struct SocketOptions {
  int rank = 0;
  int size = 1;
  std::string meet_host = "127.0.0.1";  // a name or a numeric IPv4 or IPv6 address
  int meet_port = 0;
  Meeting meeting = Meeting::at_rank_zero;
  // What the ranks of this job have in common: a key that they prove to each other that they have,
  // and a name that tells jobs apart. Its size is `size`.
  net::JobIdentity identity;
  // By which peers reach this rank; empty: the local address of the route to meet_host.
  std::string address;
  // For the rendezvous, and for each operation after it.
  std::chrono::milliseconds timeout{60000};
  // No message is longer. Sums are formed and passed on in pieces of this size, so it must be the
  // same on all ranks.
  std::int64_t chunk_bytes = 1 << 18;
  // Looked at while ranks meet: once it has said yes for two seconds and ranks are still missing,
  // the rendezvous throws `Error` with exit code 75.
  std::function<bool()> stop_requested;
};

// The communicator of all ranks of the job. Collective over the job; throws `PeerLost` naming those
// who did not come when the timeout passes, and `Error` when rank 0's port is taken or this rank's
// address cannot be found. One rank needs no network.
//
// Every pair of ranks is joined by two connections: one carries operations, the other only notices
// (an abort with its reason, a goodbye), so that a notice is never stuck behind a tensor. A rank
// that is killed is noticed at once: `PeerLost` with "rank 3 closed its connection". A rank that
// destroyed its communicator after its work was done is missed only by an operation that needs it.
// Ranks listen while they meet, and not afterwards. Who connects then has to prove that he has the
// job's key before anything is done for him, and is turned away alone; without a key anybody may
// say that he is a rank. Nothing is encrypted: docs/security.md.
//
// Sums are formed piece by piece in the order of a ring, so results have the same bits as those of
// the threads backend, and a finished piece is sent on while the next ones still come. All
// operations in flight, of this communicator and of all its splits, make progress whenever any
// thread is in `wait` of one of them, so they may be waited for in any order, another one on each
// rank. Outside of `wait` only the kernel's socket buffers move bytes (some MB per peer): a rank
// that stays away longer holds up those who need it.
//
// Memory: what a peer sends for an operation that this rank has not called yet is limited to 256
// KiB per peer; the rest waits at the sender. Sums keep what arrived and cannot be added yet
// because another rank's piece is missing: usually some pieces, at most the size of the tensor.
std::unique_ptr<Communicator> make_socket_communicator(const SocketOptions& options);

// The same for ranks that find rank 0 by something else: see
// collectives/sockets/rendezvous.h.
std::unique_ptr<Communicator> make_socket_communicator(const SocketOptions& options,
                                                       sockets::Directory& directory);

}  // namespace thinwire
