// A c10d TCPStore as the place where ranks leave word.
#pragma once

#include <memory>

#include "collectives/sockets/rendezvous.h"

namespace thinwire::sockets {

// Runs the store, if that is this rank's part, or connects to it. Throws `Error` when its port is
// taken, `PeerLost` when nobody answers until the deadline.
std::unique_ptr<Directory> open_store(const SocketOptions& options, Deadline deadline);

}  // namespace thinwire::sockets
