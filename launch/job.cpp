#include "launch/job.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "collectives/sockets/socket_communicator.h"
#include "collectives/threads/thread_communicator.h"
#include "launch/exit.h"
#include "runtime/base/error.h"

#if THINWIRE_HAVE_MPI
#include "collectives/mpi/mpi_communicator.h"
#endif

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
  const Rendezvous& meet = environment.rendezvous;
  if (backend == Backend::sockets && (meet.host.empty() || meet.port == 0)) {
    throw UsageError(fmt::format(
        "--backend sockets knows no place to meet under {}; set MASTER_ADDR to rank 0's host and "
        "MASTER_PORT to a free port there",
        launcher));
  }
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

// They end together, and one of them says why.
int end_together(const AgreedError& error, int rank) {
  if (rank == 0) return report(error, std::nullopt);
  let_others_speak();
  return exit_code(error);
}

int end_alone(const std::exception& error, int rank) {
  const int code = report(error, rank);
  // A rank that failed on its own tells its peers before it says why itself: let it come first.
  if (dynamic_cast<const PeerLost*>(&error)) let_others_speak();
  return code;
}

int run_over_sockets(const Job& job, const RankBody& body) {
  const JobEnvironment& environment = job.environment;
  const Rendezvous& meet = environment.rendezvous;
  SocketOptions options;
  options.rank = environment.rank;
  options.size = environment.world_size;
  options.store_host = meet.host;
  options.store_port = meet.port;
  options.store =
      meet.server == Rendezvous::Server::launcher ? StoreHost::launcher : StoreHost::rank_zero;
  if (!meet.start.empty()) options.prefix = "thinwire-" + meet.start;
  options.timeout = job.timeout;
  try {
    return body(make_socket_communicator(options));
  } catch (const AgreedError& error) {
    return end_together(error, environment.rank);
  } catch (const std::exception& error) {
    return end_alone(error, environment.rank);
  }
}

#if THINWIRE_HAVE_MPI
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
#else
int run_over_mpi(const Job&, const RankBody&) {
  throw Bug("bug: MPI is not built in");
}
#endif

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
  if (THINWIRE_HAVE_MPI) built.push_back(Backend::mpi);
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
      throw UsageError(fmt::format("--backend is '{}'; give auto, threads, mpi or sockets", word));
    }
    backend = *found;
  }
  require_usable(backend, environment, ranks);
  if (!has(built, backend)) {
    throw UsageError(fmt::format(
        "this thinwire was built without {0}, which {1} needs here; rebuild with it, start with "
        "torchrun or srun, or run one process with --ranks N",
        name(backend), word == "auto" ? name(environment.launcher) : "--backend " + word));
  }
  return backend;
}

std::string describe(const Job& job) {
  std::string over = fmt::format("over {}", name(job.backend));
  const Rendezvous& meet = job.environment.rendezvous;
  if (job.backend == Backend::sockets && !meet.host.empty()) {
    over += fmt::format(", met at {}:{}", meet.host, meet.port);
  }
  return fmt::format("launcher {}; ranks {}", describe(job.environment), over);
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

void let_others_speak() {
  std::this_thread::sleep_for(std::chrono::seconds(1));
}

}  // namespace thinwire
