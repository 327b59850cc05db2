#include "launch/job.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using Launcher = JobEnvironment::Launcher;
using Mpi = JobEnvironment::Mpi;

JobEnvironment started_by(Launcher launcher, int size, Mpi mpi, const std::string& host) {
  JobEnvironment environment;
  environment.launcher = launcher;
  environment.world_size = size;
  environment.mpi = mpi;
  environment.rendezvous.host = host;
  environment.rendezvous.port = host.empty() ? 0 : 29500;
  return environment;
}

const JobEnvironment kAlone;
const JobEnvironment kMpirun = started_by(Launcher::mpirun, 2, Mpi::offered, "");
const JobEnvironment kMpirunOfOne = started_by(Launcher::mpirun, 1, Mpi::offered, "");
const JobEnvironment kMpirunWithPlace = started_by(Launcher::mpirun, 2, Mpi::offered, "host");
const JobEnvironment kSrun = started_by(Launcher::srun, 2, Mpi::absent, "host");
const JobEnvironment kSrunWithPmix = started_by(Launcher::srun, 2, Mpi::offered, "host");
const JobEnvironment kTorchrun = started_by(Launcher::torchrun, 2, Mpi::absent, "host");
const std::vector<Backend> kAll{Backend::threads, Backend::sockets, Backend::mpi};
const std::vector<Backend> kWithoutMpi{Backend::threads, Backend::sockets};

TEST(Job, WhatJoinsTheRanks) {
  struct Case {
    const char* word;
    JobEnvironment environment;
    std::int64_t ranks;
    std::vector<Backend> built;
    Backend backend;
  };
  const std::vector<Case> table{
      {"auto", kAlone, 1, kAll, Backend::threads},
      {"auto", kAlone, 4, kAll, Backend::threads},
      {"auto", kMpirunOfOne, 1, kAll, Backend::threads},
      {"auto", kMpirunOfOne, 3, kWithoutMpi, Backend::threads},
      {"auto", kMpirun, 1, kAll, Backend::mpi},
      {"auto", kMpirunWithPlace, 1, kAll, Backend::mpi},
      {"auto", kMpirunWithPlace, 1, kWithoutMpi, Backend::sockets},
      {"auto", kSrun, 1, kAll, Backend::sockets},
      {"auto", kSrunWithPmix, 1, kAll, Backend::mpi},
      {"auto", kSrunWithPmix, 1, kWithoutMpi, Backend::sockets},
      {"auto", kTorchrun, 1, kAll, Backend::sockets},
      {"threads", kAlone, 4, kAll, Backend::threads},
      {"mpi", kAlone, 1, kAll, Backend::mpi},
      {"mpi", kMpirun, 1, kAll, Backend::mpi},
      {"sockets", kAlone, 1, kAll, Backend::sockets},
      {"sockets", kSrunWithPmix, 1, kAll, Backend::sockets},
      {"sockets", kMpirunWithPlace, 1, kAll, Backend::sockets},
  };
  for (const auto& expected : table) {
    EXPECT_EQ(
        name(choose_backend(expected.word, expected.environment, expected.ranks, expected.built)),
        name(expected.backend))
        << expected.word << " under " << name(expected.environment.launcher);
  }
}

TEST(Job, WhatCannotJoinThemIsRefused) {
  struct Case {
    const char* word;
    JobEnvironment environment;
    std::int64_t ranks;
    std::vector<Backend> built;
    std::string message;
  };
  const std::vector<Case> table{
      {"gloo", kAlone, 1, kAll, "--backend is 'gloo'; give auto, threads, mpi or sockets"},
      {"threads", kTorchrun, 1, kAll,
       "--backend threads joins no processes, but torchrun started 2; leave it out"},
      {"mpi", kAlone, 2, kAll,
       "--ranks 2 makes ranks threads, which --backend mpi does not join; leave out one of them"},
      {"sockets", kAlone, 2, kAll,
       "--ranks 2 makes ranks threads, which --backend sockets does not join; leave out one of "
       "them"},
      {"mpi", kSrun, 1, kAll,
       "--backend mpi finds no peers under srun; start with mpirun or srun --mpi=pmix, or use "
       "--backend sockets"},
      {"sockets", kMpirun, 1, kAll,
       "--backend sockets knows no place to meet under mpirun; set MASTER_ADDR to rank 0's host "
       "and MASTER_PORT to a free port there"},
      {"auto", kMpirun, 1, kWithoutMpi,
       "this program was built without mpi, which mpirun needs here; rebuild with it, start with "
       "torchrun or srun, or run one process with --ranks N"},
      {"mpi", kSrunWithPmix, 1, kWithoutMpi,
       "this program was built without mpi, which --backend mpi needs here; rebuild with it, "
       "start with torchrun or srun, or run one process with --ranks N"},
  };
  for (const auto& expected : table) {
    try {
      choose_backend(expected.word, expected.environment, expected.ranks, expected.built);
      ADD_FAILURE() << "accepted; expected: " << expected.message;
    } catch (const UsageError& error) {
      EXPECT_EQ(error.what(), expected.message);
    }
  }
}

TEST(Job, ThreadsReturnTheCodeThatIsNotZero) {
  Job job;
  job.ranks = 3;
  const auto code_of_one = [](std::unique_ptr<Communicator> rank) {
    return rank->rank() == 1 ? 75 : 0;
  };
  EXPECT_EQ(run_job(job, code_of_one), 75);
  EXPECT_EQ(run_job(job, [](std::unique_ptr<Communicator>) { return 0; }), 0);
  EXPECT_THROW(run_job(job, [](std::unique_ptr<Communicator>) -> int { throw IoError("a; b"); }),
               IoError);
}

// One process over sockets: what it says and how it ends.
TEST(Job, AProcessReportsItsOwnError) {
  Job job;
  job.backend = Backend::sockets;
  const auto end = [&](const auto& error) {
    testing::internal::CaptureStderr();
    const int code = run_job(job, [&](std::unique_ptr<Communicator>) -> int { throw error; });
    return fmt::format("{} {}", code, testing::internal::GetCapturedStderr());
  };
  EXPECT_EQ(end(IoError("a; b")), "74 thinwire: rank 0: a; b\n");
  EXPECT_EQ(end(PeerLost("a; b")), "71 thinwire: rank 0: a; b\n");
  EXPECT_EQ(end(ConfigurationMismatch("a; b")), "78 thinwire: a; b\n");
  EXPECT_EQ(run_job(job, [](std::unique_ptr<Communicator> one) { return 40 + one->size(); }), 41);
}

TEST(Job, WhereSocketsMeet) {
  JobEnvironment environment = kTorchrun;
  environment.rank = 1;
  environment.rendezvous.server = Rendezvous::Server::launcher;
  environment.rendezvous.start = "torchrun-7-0";
  const SocketOptions options = socket_options(environment);
  EXPECT_EQ(options.rank, 1);
  EXPECT_EQ(options.size, 2);
  EXPECT_EQ(options.meet_host, "host");
  EXPECT_EQ(options.meet_port, 29500);
  EXPECT_EQ(options.meeting, Meeting::in_store);  // its port is taken: by the store
  EXPECT_EQ(options.identity.job, "torchrun-7-0");
  EXPECT_EQ(options.identity.size, 2);
  EXPECT_EQ(socket_options(kSrun).meeting, Meeting::at_rank_zero);
  EXPECT_EQ(make_socket_communicator(socket_options(kAlone))->size(), 1);
  EXPECT_THROW(socket_options(kMpirun), UsageError);
}

TEST(Job, OneLineSaysIt) {
  Job job;
  EXPECT_EQ(describe(job), "launcher alone (no launcher's variables are set); ranks over threads");
  job.environment = kTorchrun;
  job.environment.why = std::string("W");
  job.backend = Backend::sockets;
  EXPECT_EQ(
      describe(job),
      "launcher torchrun (W): rank 0 of 2, local rank 0 of 1; ranks over sockets, met at "
      "host:29500; no secret and no --job-id: jobs are not told apart, whoever reaches the ports "
      "can join");
}

}  // namespace
}  // namespace thinwire
