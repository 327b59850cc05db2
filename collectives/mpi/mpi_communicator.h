// Ranks as processes of an MPI job.
#pragma once

#include <mpi.h>

#include <chrono>
#include <memory>

#include "collectives/communicator.h"
#include "collectives/mpi/mpi_environment.h"

namespace thinwire {

struct MpiOptions {
  std::chrono::milliseconds timeout{60000};
  // MPI counts are int: larger messages go in pieces of at most this size, at least 8. Tests use a
  // tiny one.
  std::int64_t max_message_bytes = std::int64_t{1} << 30;
};

// A communicator over a duplicate of `parent`. Collective over `parent`. Throws as
// `require_mpi_for_threads` does.
//
// Messages go point to point, large sums round a ring, those of two ranks straight across: results
// have the same bits as those of the threads backend, and the bytes counted are the bytes sent. MPI
// makes progress only inside `wait`, which tests with yields and then short sleeps. A timeout names
// the peers that this rank waits for; in a large sum those are its neighbours, which may be waiting
// themselves. The lifeline (runtime/watch) knows who is behind.
std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, MpiOptions options = {});

}  // namespace thinwire
