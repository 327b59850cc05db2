// The guest's way through a door.
#pragma once

#include <functional>
#include <vector>

#include "collectives/net/handshake.h"
#include "collectives/net/socket.h"

namespace thinwire::net {

// A connection to the rank that `who.host` names: tries all `addresses` at once, each again and
// again, and takes the first that proves to be this rank. `check` is called many times a second and
// may throw.
//
// Throws `PeerLost` with the reason when the deadline passes, and at once where a rank of ours
// turns this one away, where this process may open no more files, or where nobody listens: but for
// a meeting, since rank 0 may start later.
Descriptor call(const std::vector<Address>& addresses, const JobIdentity& identity,
                const Introduction& who, Deadline deadline, const std::function<void()>& check);

}  // namespace thinwire::net
