#include "launch/job.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/base/thread.h"
#include "collectives/net/socket.h"
#include "collectives/sockets/rendezvous.h"
#include "collectives/threads/thread_communicator.h"
#include "launch/exit.h"
#include "launch/mpi_job.h"

namespace thinwire {
namespace {

using Launcher = JobEnvironment::Launcher;

bool has(const std::vector<Backend>& built, Backend backend) {
  return std::find(built.begin(), built.end(), backend) != built.end();
}

Backend automatic(const JobEnvironment& environment, const std::vector<Backend>& built) {
  if (environment.world_size == 1) return Backend::threads;
  const bool mpi = environment.mpi == JobEnvironment::Mpi::offered && has(built, Backend::mpi);
  const bool met_by_mpi_only =
      environment.launcher == Launcher::mpirun && environment.rendezvous.host.empty();
  return mpi || met_by_mpi_only ? Backend::mpi : Backend::sockets;
}

void require_usable(Backend backend, const JobEnvironment& environment, std::int64_t ranks) {
  const std::string launcher = name(environment.launcher);
  const int size = environment.world_size;
  if (backend == Backend::threads && size > 1) {
    throw UsageError(fmt::format(
        "--backend threads joins no processes, but {} started {}; leave it out", launcher, size));
  }
  if (backend != Backend::threads && ranks > 1) {
    throw UsageError(fmt::format(
        "--ranks {} makes ranks threads, which --backend {} does not join; leave out one of them",
        ranks, name(backend)));
  }
  if (size == 1) return;
  if (backend == Backend::mpi && environment.mpi == JobEnvironment::Mpi::absent) {
    throw UsageError(
        fmt::format("--backend mpi finds no peers under {}; start with mpirun or srun "
                    "--mpi=pmix, or use --backend sockets",
                    launcher));
  }
  if (backend == Backend::sockets) socket_options(environment);
}

// Loopback, which is all that a job on one machine needs; empty where there is none.
std::string own_loopback() {
  const auto own = net::own_addresses();
  const auto found = std::find_if(own.begin(), own.end(), net::is_loopback);
  return found == own.end() ? "" : *found;
}

// Where rank 0 listens, and why that is everywhere, if it is.
void choose_addresses(Job& job) {
  const JobEnvironment& environment = job.environment;
  const bool on_one_machine = environment.local_size == environment.world_size;
  if (on_one_machine) job.lifeline_address = own_loopback();
  if (job.backend == Backend::mpi) {
    if (job.lifeline_address.empty()) job.listens_everywhere = "MPI names no address";
    return;
  }
  std::string meeting;
  try {
    meeting = sockets::listen_address(socket_options(environment));
  } catch (const Error&) {
    // The name may come to mean something while ranks meet.
  }
  if (!on_one_machine) job.lifeline_address = meeting;
  if (!meeting.empty()) return;
  job.listens_everywhere = fmt::format("'{}' is not one address of this machine",
                                       printable(environment.rendezvous.host));
}

int run_threads(const Job& job, const RankBody& body) {
  std::atomic<int> code{0};
  run_ranks(job.ranks,
            [&](std::unique_ptr<Communicator> communicator) {
              const int rank_code = body(std::move(communicator));
              if (rank_code != 0) code = rank_code;
            },
            {.timeout = job.timeout, .link = {}});
  return code;
}

int run_over_sockets(const Job& job, const RankBody& body) {
  const int rank = job.environment.rank;
  try {
    SocketOptions options = socket_options(job.environment);
    options.identity = job.admission.identity;
    options.timeout = job.timeout;
    options.stop_requested = job.stop_requested;
    return body(make_socket_communicator(options));
  } catch (const AgreedError& error) {
    return end_together(error, rank);
  } catch (const std::exception& error) {
    return end_alone(error, rank);
  }
}

}  // namespace

std::string name(Backend backend) {
  switch (backend) {
    case Backend::threads:
      return "threads";
    case Backend::mpi:
      return "mpi";
    case Backend::sockets:
      return "sockets";
  }
  throw Bug("bug: a backend without a name");
}

std::vector<Backend> built_backends() {
  std::vector<Backend> built{Backend::threads, Backend::sockets};
  if (linked_with_mpi()) built.push_back(Backend::mpi);
  return built;
}

Backend choose_backend(const std::string& word, const JobEnvironment& environment,
                       std::int64_t ranks, const std::vector<Backend>& built) {
  Backend backend = automatic(environment, built);
  if (word != "auto") {
    const Backend all[] = {Backend::threads, Backend::mpi, Backend::sockets};
    const auto* found =
        std::find_if(std::begin(all), std::end(all), [&](Backend b) { return name(b) == word; });
    if (found == std::end(all)) {
      throw UsageError(
          fmt::format("--backend is '{}'; give auto, threads, mpi or sockets", printable(word)));
    }
    backend = *found;
  }
  require_usable(backend, environment, ranks);
  if (!has(built, backend)) {
    throw UsageError(fmt::format(
        "this program was built without {0}, which {1} needs here; rebuild with it, start with "
        "torchrun or srun, or run one process with --ranks N",
        name(backend), word == "auto" ? name(environment.launcher) : "--backend " + word));
  }
  return backend;
}

Job make_job(const JobEnvironment& environment, const JobRequest& request) {
  Job job;
  job.environment = environment;
  job.backend = choose_backend(request.backend, environment, request.ranks, built_backends());
  job.ranks = static_cast<int>(request.ranks);
  job.timeout = request.timeout;
  job.admission = admission_of(environment, request.name);
  if (job.backend == Backend::mpi && job.admission.means == Admission::Means::name) {
    job.admission.means = Admission::Means::mpi;
  }
  if (environment.world_size > 1 && environment.rank == 0) choose_addresses(job);
  return job;
}

std::string describe(const Job& job) {
  std::string over = fmt::format("over {}", name(job.backend));
  const Rendezvous& meet = job.environment.rendezvous;
  if (job.backend == Backend::sockets && !meet.host.empty()) {
    over += fmt::format(", met at {}:{}", printable(meet.host), meet.port);
  }
  if (job.environment.world_size > 1) over += "; " + describe(job.admission);
  if (!job.listens_everywhere.empty()) {
    over += fmt::format("; rank 0 listens on every interface, as {}", job.listens_everywhere);
  }
  return fmt::format("launcher {}; ranks {}", describe(job.environment), over);
}

SocketOptions socket_options(const JobEnvironment& environment, const JobName& job_name) {
  const Rendezvous& meet = environment.rendezvous;
  if (environment.world_size > 1 && (meet.host.empty() || meet.port == 0)) {
    throw UsageError(fmt::format(
        "--backend sockets knows no place to meet under {}; set MASTER_ADDR to rank 0's host and "
        "MASTER_PORT to a free port there",
        name(environment.launcher)));
  }
  SocketOptions options;
  options.rank = environment.rank;
  options.size = environment.world_size;
  options.meet_host = meet.host;
  options.meet_port = meet.port;
  options.meeting =
      meet.server == Rendezvous::Server::launcher ? Meeting::in_store : Meeting::at_rank_zero;
  options.identity = admission_of(environment, job_name).identity;
  return options;
}

void share_cores(const JobEnvironment& environment, std::int64_t ranks, std::int64_t threads) {
  if (threads > 0) {
    at::set_num_threads(static_cast<int>(threads));
  } else if (!environment.threads_limited) {
    const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
    const std::int64_t on_host = std::max<std::int64_t>(ranks, environment.local_size);
    at::set_num_threads(static_cast<int>(std::max<std::int64_t>(1, cores / on_host)));
  }
  // Each rank computes on two threads, which OpenMP gives helpers; where it cannot make one it ends
  // the process.
  require_threads(static_cast<std::size_t>(2 * ranks * at::get_num_threads()));
}

int run_job(const Job& job, const RankBody& body) {
  switch (job.backend) {
    case Backend::threads:
      return run_threads(job, body);
    case Backend::mpi:
      return run_over_mpi(job, body);
    case Backend::sockets:
      return run_over_sockets(job, body);
  }
  throw Bug("bug: a backend without a case");
}

}  // namespace thinwire
