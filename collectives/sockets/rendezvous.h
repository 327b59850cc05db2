// How ranks that know only a common place find each other.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/sockets/socket.h"
#include "collectives/sockets/socket_communicator.h"

namespace thinwire::sockets {

// Where ranks leave word for each other before they are connected; used by one rank.
class Directory {
 public:
  virtual ~Directory() = default;
  virtual void publish(int rank, const std::string& contact) = 0;
  // What that rank published; nothing until then. Does not wait for it.
  virtual std::optional<std::string> look_up(int rank) = 0;
};

// The two connections to one peer; empty for this rank itself.
struct Connections {
  Descriptor data;
  Descriptor notices;
};

// Joins this rank with every other one; the result is indexed by rank. Each rank listens, publishes
// address, port and a random token, connects to the ranks below it and is connected to by those
// above. When rank 0 returns nobody needs the directory any more. Throws as
// make_socket_communicator does.
std::vector<Connections> meet(const SocketOptions& options, Directory& directory,
                              Deadline deadline);

}  // namespace thinwire::sockets
