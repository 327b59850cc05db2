#include "launch/mpi_job.h"

#include <fmt/format.h>

#include "collectives/base/error.h"
#include "collectives/mpi/mpi_communicator.h"
#include "launch/exit.h"

namespace thinwire {

bool linked_with_mpi() {
  return true;
}

int run_over_mpi(const Job& job, const RankBody& body) {
  const JobEnvironment& environment = job.environment;
  MpiEnvironment mpi;
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (rank != environment.rank || size != environment.world_size) {
    throw UsageError(fmt::format(
        "MPI finds rank {} of {}, but {} started rank {} of {}: this MPI belongs to another "
        "launcher; use --backend sockets, or its own mpirun",
        rank, size, name(environment.launcher), environment.rank, environment.world_size));
  }
  try {
    return body(make_mpi_communicator(MPI_COMM_WORLD, {.timeout = job.timeout}));
  } catch (const AgreedError& error) {
    return end_together(error, rank);
  } catch (const std::exception& error) {
    // The others may be waiting for this rank.
    MpiEnvironment::abort_job(end_alone(error, rank));
  }
}

}  // namespace thinwire
