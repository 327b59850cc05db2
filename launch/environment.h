// Who am I, who are the others: what a launcher left in the environment.
#pragma once

#include <cstdint>
#include <functional>

namespace thinwire {

// This process's place among the processes of the job.
struct JobEnvironment {
  enum class Launcher { alone, mpirun };
  Launcher launcher = Launcher::alone;
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;  // among the processes of this host
  int local_size = 1;  // how many those are
};

// Reads Open MPI's OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK and, if it is set, _LOCAL_SIZE through
// `variable`, which returns null for what is not set, like std::getenv. Throws `UsageError` if they
// contradict one another.
JobEnvironment job_environment(const std::function<const char*(const char*)>& variable);

// Ranks are threads or processes: throws `UsageError` if `ranks` > 1 among several processes.
void require_one_kind_of_rank(const JobEnvironment& environment, std::int64_t ranks);

}  // namespace thinwire
