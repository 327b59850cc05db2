#include "collectives/mpi/mpi_environment.h"

#include <mpi.h>

#include <cstdio>
#include <cstdlib>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using Query = int (*)(int*);

bool is(Query query) {
  int answer = 0;
  query(&answer);
  return answer != 0;
}

void require_not_finalized() {
  if (!is(MPI_Finalized)) return;
  throw UsageError(
      "MPI was finalized in this process and cannot start again; call MPI_Finalize after the last "
      "use of thinwire");
}

}  // namespace

void require_mpi_for_threads() {
  require_not_finalized();
  if (!is(MPI_Initialized)) {
    throw UsageError(
        "MPI is not started; make a thinwire::MpiEnvironment first, or call "
        "MPI_Init_thread(MPI_THREAD_MULTIPLE)");
  }
  int provided = 0;
  MPI_Query_thread(&provided);
  if (provided >= MPI_THREAD_MULTIPLE) return;
  throw UsageError(
      "MPI was started without MPI_THREAD_MULTIPLE, but gradients are sent from a thread of their "
      "own; replace MPI_Init by MPI_Init_thread(MPI_THREAD_MULTIPLE), or leave it to "
      "thinwire::MpiEnvironment");
}

MpiEnvironment::MpiEnvironment() {
  require_not_finalized();
  if (is(MPI_Initialized)) {
    require_mpi_for_threads();
    return;
  }
  int provided = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS) {
    throw Error(ExitCode::internal, "MPI does not start; see what it printed");
  }
  if (provided < MPI_THREAD_MULTIPLE) {
    MPI_Finalize();
    throw Error(ExitCode::internal,
                "this MPI does not support MPI_THREAD_MULTIPLE; use a build of MPI that does");
  }
  started_here_ = true;
}

MpiEnvironment::~MpiEnvironment() {
  if (started_here_ && !is(MPI_Finalized)) MPI_Finalize();
}

void MpiEnvironment::abort_job(int code) {
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace thinwire
