// How ranks that know only a store find each other.
#pragma once

#include <vector>

#include "collectives/sockets/socket.h"
#include "collectives/sockets/socket_communicator.h"

namespace thinwire::sockets {

// The two connections to one peer; empty for this rank itself.
struct Connections {
  Descriptor data;
  Descriptor notices;
};

// Joins this rank with every other one; the result is indexed by rank. Each rank listens, publishes
// address, port and a random token in the store, connects to the ranks below it and is connected to
// by those above. The store is not needed afterwards. Throws as make_socket_communicator does.
std::vector<Connections> meet(const SocketOptions& options);

}  // namespace thinwire::sockets
