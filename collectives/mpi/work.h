// One operation over MPI.
#pragma once

#include <memory>

#include "collectives/communicator.h"
#include "collectives/mpi/link.h"
#include "collectives/operation.h"

namespace thinwire::mpi {

// Posts the first messages of `call`; its waits post the others.
//
// MPI cannot take back a message that is sent, and may read its memory as long as the process
// lives. So memory that MPI knows is never freed before MPI is through with it, however the
// operation ends: the storage of tensors is held, for ever if need be, and no longer resizable; a
// tensor that does not own its memory (`from_blob`) takes part as a copy.
std::unique_ptr<Work> start_work(std::shared_ptr<Membership> group, Operation call);

}  // namespace thinwire::mpi
