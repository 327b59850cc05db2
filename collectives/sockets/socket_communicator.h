// Ranks as processes joined by plain TCP.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "collectives/communicator.h"

namespace thinwire {

namespace sockets {
class Directory;
}

// Who runs the c10d TCPStore through which ranks find each other.
enum class StoreHost {
  rank_zero,  // rank 0 of the job, at store_port of its machine
  launcher,   // somebody who was there before and outlives the rendezvous, such as torchrun
};

// Who this rank is and where it meets the others.
struct SocketOptions {
  int rank = 0;
  int size = 1;
  std::string store_host = "127.0.0.1";  // a name or a numeric IPv4 or IPv6 address
  int store_port = 0;
  StoreHost store = StoreHost::rank_zero;
  // Starts every key in the store. A store that serves several rendezvous (restarts of a job, or
  // several jobs) needs a prefix for each.
  std::string prefix = "thinwire";
  // By which peers reach this rank; empty: the local address of the route to the store.
  std::string address;
  // For the rendezvous, and for each operation after it.
  std::chrono::milliseconds timeout{60000};
  // Sums are formed and passed on in pieces of this size.
  std::int64_t chunk_bytes = 1 << 18;
};

// The communicator of all ranks of the job. Collective over the job; throws `PeerLost` naming those
// who did not come when the timeout passes, and `Error` when the store's port is taken or this
// rank's address cannot be found. One rank needs neither store nor network.
//
// Every pair of ranks is joined by two connections: one carries operations, the other only notices
// (an abort with its reason, a goodbye), so that a notice is never stuck behind a tensor. A rank
// that is killed is noticed at once: `PeerLost` with "rank 3 closed its connection". A rank that
// destroyed its communicator after its work was done is missed only by an operation that needs it.
// Strangers that find the port are turned away: a connection opens with a token from the store.
// Nothing is encrypted.
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

// The same for ranks that find each other by something else than a store: see
// collectives/sockets/rendezvous.h.
std::unique_ptr<Communicator> make_socket_communicator(const SocketOptions& options,
                                                       sockets::Directory& directory);

}  // namespace thinwire
