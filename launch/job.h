// How the ranks of this process meet the others of the job.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/sockets/socket_communicator.h"
#include "launch/admission.h"
#include "launch/environment.h"

namespace thinwire {

// What carries messages between the ranks' CPUs.
enum class Backend { threads, mpi, sockets };

// "threads", "mpi" or "sockets".
std::string name(Backend backend);

// Those that this program was built with.
std::vector<Backend> built_backends();

// What --backend `word` means for `ranks` ranks in each process of this job. "auto": threads for a
// single process, MPI where the launcher offers it, else sockets. Throws `UsageError` if the word
// is not known, or if that backend cannot join these processes or is not in `built`.
Backend choose_backend(const std::string& word, const JobEnvironment& environment,
                       std::int64_t ranks, const std::vector<Backend>& built);

// What `make_socket_communicator` needs to know under this launcher: who this rank is, where the
// ranks meet, and that torchrun's own store is already there. Throws `UsageError` where several
// processes know no place to meet, as under a plain mpirun.
//
//   auto ranks = make_socket_communicator(socket_options(job_environment()));
//
// Who may join follows from `admission_of(environment, name)`.
SocketOptions socket_options(const JobEnvironment& environment, const JobName& name = {});

// Gives forward and backward of each rank of this process `threads` threads; 0: as OMP_NUM_THREADS
// says, or its share of the host's cores. `ranks`: how many ranks are threads of this process.
// Throws `Error` where the system does not allow as many threads as they will use.
void share_cores(const JobEnvironment& environment, std::int64_t ranks, std::int64_t threads = 0);

// This process's share of a job.
struct Job {
  JobEnvironment environment;
  Backend backend = Backend::threads;
  int ranks = 1;  // threads of this process; 1 on the other backends
  std::chrono::milliseconds timeout{60000};
  Admission admission;
  // On rank 0: the numeric address at which it listens for the lifeline; empty: every interface.
  std::string lifeline_address;
  // On rank 0: why it listens on every interface, for the meeting or for the lifeline; empty where
  // it does not.
  std::string listens_everywhere;
  // Whether this process was asked to stop; looked at while ranks meet over sockets.
  std::function<bool()> stop_requested;
};

struct JobRequest {
  std::string backend = "auto";  // as for `choose_backend`
  std::int64_t ranks = 1;        // threads
  std::chrono::milliseconds timeout{60000};
  JobName name;
};

// Throws `UsageError` as `choose_backend` and `admission_of`.
Job make_job(const JobEnvironment& environment, const JobRequest& request);

// One line: which launcher was believed and why, over what the ranks meet, and who is kept out.
std::string describe(const Job& job);

// Runs one rank on its communicator and returns the exit code.
using RankBody = std::function<int(std::unique_ptr<Communicator>)>;

// Runs `body` once for each rank of this process and returns the process's exit code: the last one
// that is not 0.
//
// With threads, the first exception is rethrown. With processes, an `AgreedError` is reported by
// rank 0, any other error by the rank that has it, and the job ends: under MPI by MPI_Abort, else
// because the connections of a rank that leaves are closed. Throws `UsageError` where MPI finds
// other processes than the launcher started.
int run_job(const Job& job, const RankBody& body);

}  // namespace thinwire
