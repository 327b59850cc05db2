// launch/mpi_job.h for programs without MPI.
#include "collectives/base/error.h"
#include "launch/mpi_job.h"

namespace thinwire {

bool linked_with_mpi() {
  return false;
}

int run_over_mpi(const Job&, const RankBody&) {
  throw Bug("bug: MPI is not built in");
}

}  // namespace thinwire
