// All of Thinwire that a training loop of one's own needs: link `thinwire::thinwire`.
#pragma once

#include <torch/version.h>

#include "collectives/base/error.h"
#include "collectives/communicator.h"
#include "collectives/metered.h"
#include "collectives/sockets/socket_communicator.h"
#include "collectives/threads/thread_communicator.h"
#include "launch/launch.h"
#include "runtime/data_parallel.h"
#include "runtime/rank_generator.h"

// Set by the targets thinwire::mpi and thinwire::nccl, and by `pkg-config thinwire-mpi`.
#ifdef THINWIRE_WITH_MPI
#include "collectives/mpi/mpi_communicator.h"
#endif
#ifdef THINWIRE_WITH_NCCL
#include "collectives/nccl/nccl_communicator.h"
#endif

// The library was compiled with that one, and libtorch promises no binary interface from one minor
// version to the next.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11,
              "thinwire needs libtorch 2.11; compile with the headers of a torch 2.11 wheel");
