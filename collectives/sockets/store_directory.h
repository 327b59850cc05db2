// A launcher's c10d TCPStore as the place where rank 0 leaves word.
#pragma once

#include <memory>

#include "collectives/sockets/rendezvous.h"

namespace thinwire::sockets {

// Connects to the store at options.meet_host and meet_port. The store authenticates nobody, so
// nothing secret goes into it, and what it answers is bounded: numbers of eight bytes, each until
// the deadline, whatever the store does. Throws `PeerLost` when nobody answers until then, and what
// `options.stop_requested` asks for.
std::unique_ptr<Directory> open_store(const SocketOptions& options, Deadline deadline);

}  // namespace thinwire::sockets
