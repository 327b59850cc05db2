// Who am I, who are the others: what a launcher left in the environment.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace thinwire {

// Where processes without MPI meet: at rank 0, or at a c10d TCPStore of the launcher.
struct Rendezvous {
  enum class Server { rank_zero, launcher };
  Server server = Server::rank_zero;
  std::string host;  // empty: no launcher named a place to meet
  int port = 0;
  // Names this start of the job, alike on all its ranks: a store that the launcher serves may still
  // hold what an earlier start left. Empty where no launcher names it.
  std::string start;
};

// This process's place among the processes of the job, as the launcher that was believed tells it.
struct JobEnvironment {
  enum class Launcher { alone, mpirun, srun, torchrun };
  enum class Mpi { absent, offered };

  Launcher launcher = Launcher::alone;
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;                                   // among the processes of this host
  int local_size = 1;                                   // how many those are
  Mpi mpi = Mpi::absent;                                // would MPI_Init find the other processes?
  Rendezvous rendezvous;                                // srun and torchrun
  bool devices_limited = false;                         // CUDA_VISIBLE_DEVICES is set
  bool threads_limited = false;                         // OMP_NUM_THREADS is set
  std::string secret;                                   // THINWIRE_SECRET
  std::string secret_file;                              // THINWIRE_SECRET_FILE
  std::string why = "no launcher's variables are set";  // why this launcher was believed
};

// Reads what mpirun (Open MPI), srun and torchrun set through `variable`, which returns null for
// what is not set, like std::getenv. Where launchers are nested the innermost is believed:
// torchrun, which says so by TORCHELASTIC_RUN_ID, then mpirun, then srun; RANK, WORLD_SIZE,
// LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT set by hand count as torchrun's. A
// Slurm job without a step of srun (a batch script, a shell of salloc) is no launcher.
//
// Under srun the ranks meet at MASTER_ADDR:MASTER_PORT if these are set, else on the step's first
// node at a port from 20000 to 29999 that follows from the job's and the step's number.
//
// Throws `UsageError` if a launcher's variables are incomplete, contradict one another or those of
// another launcher; it says what to unset.
JobEnvironment job_environment(const std::function<const char*(const char*)>& variable);

// The same from this process's environment.
JobEnvironment job_environment();

// "mpirun", "srun", "torchrun" or "alone".
std::string name(JobEnvironment::Launcher launcher);

// One line: the launcher, why it was believed, and this process's place.
std::string describe(const JobEnvironment& environment);

// Ranks are threads or processes: throws `UsageError` if `ranks` > 1 among several processes.
void require_one_kind_of_rank(const JobEnvironment& environment, std::int64_t ranks);

}  // namespace thinwire
