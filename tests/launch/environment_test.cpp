#include "launch/environment.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using Variables = std::map<std::string, std::string>;
using Launcher = JobEnvironment::Launcher;
using Mpi = JobEnvironment::Mpi;
using Server = Rendezvous::Server;

JobEnvironment read(const Variables& variables) {
  return job_environment([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

// `variables` with `more` laid over them; an empty value takes a variable away.
Variables with(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) {
    if (value.empty()) {
      variables.erase(name);
    } else {
      variables[name] = value;
    }
  }
  return variables;
}

Variables open_mpi(const std::string& rank, const std::string& size, const std::string& local) {
  return {{"OMPI_COMM_WORLD_RANK", rank},
          {"OMPI_COMM_WORLD_SIZE", size},
          {"OMPI_COMM_WORLD_LOCAL_RANK", local}};
}

// What torchrun of torch 2.11 sets for rank 5 of 8 on two hosts of four.
const Variables kTorchrun{{"RANK", "5"},
                          {"WORLD_SIZE", "8"},
                          {"LOCAL_RANK", "1"},
                          {"LOCAL_WORLD_SIZE", "4"},
                          {"GROUP_RANK", "1"},
                          {"GROUP_WORLD_SIZE", "2"},
                          {"MASTER_ADDR", "host-a"},
                          {"MASTER_PORT", "29500"},
                          {"TORCHELASTIC_RESTART_COUNT", "2"},
                          {"TORCHELASTIC_RUN_ID", "job7"},
                          {"TORCHELASTIC_USE_AGENT_STORE", "True"}};

// The same by hand.
const Variables kByHand{{"RANK", "5"},
                        {"WORLD_SIZE", "8"},
                        {"LOCAL_RANK", "1"},
                        {"LOCAL_WORLD_SIZE", "4"},
                        {"MASTER_ADDR", "10.0.0.1"},
                        {"MASTER_PORT", "1234"}};

// What Slurm 22.05 gives a batch script of `sbatch -n 4`, which runs on the first node.
const Variables kBatchScript{{"SLURM_JOB_ID", "12"},   {"SLURM_LOCALID", "0"},
                             {"SLURM_NPROCS", "4"},    {"SLURM_NTASKS", "4"},
                             {"SLURM_PROCID", "0"},    {"SLURM_NODEID", "0"},
                             {"SLURM_NODELIST", "n1"}, {"SLURM_TASKS_PER_NODE", "4"}};

// The shell of `salloc -n 4`.
const Variables kSalloc{{"SLURM_JOB_ID", "12"},
                        {"SLURM_NPROCS", "4"},
                        {"SLURM_NTASKS", "4"},
                        {"SLURM_NODELIST", "n1"},
                        {"SLURM_TASKS_PER_NODE", "4"}};

// Task 3 of `srun -n 4` in a job of 8 tasks, on nodes of 2 and 2 tasks.
const Variables kSrun{{"SLURM_JOB_ID", "12"},
                      {"SLURM_LOCALID", "1"},
                      {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.99"},
                      {"SLURM_NODEID", "1"},
                      {"SLURM_NODELIST", "gpu[003-004]"},
                      {"SLURM_NTASKS", "8"},
                      {"SLURM_PROCID", "3"},
                      {"SLURM_STEPID", "3"},
                      {"SLURM_STEP_ID", "3"},
                      {"SLURM_STEP_NODELIST", "gpu[003-004]"},
                      {"SLURM_STEP_NUM_TASKS", "4"},
                      {"SLURM_STEP_TASKS_PER_NODE", "2(x2)"},
                      {"SLURM_TASKS_PER_NODE", "4(x2)"}};

// Task 1 of 2 on one node.
const Variables kSrunOneNode = with(kSrun, {{"SLURM_NODEID", "0"},
                                            {"SLURM_PROCID", "1"},
                                            {"SLURM_STEP_NUM_TASKS", "2"},
                                            {"SLURM_STEP_TASKS_PER_NODE", "2"},
                                            {"SLURM_STEP_NODELIST", "gpu003"}});

TEST(Environment, WhoIsBelievedAndWhereThisProcessStands) {
  struct Case {
    const char* description;
    Variables variables;
    Launcher launcher;
    int rank, world_size, local_rank, local_size;
    const char* why;
  };
  const std::vector<Case> table{
      {"nothing", {}, Launcher::alone, 0, 1, 0, 1, "no launcher's variables are set"},
      {"what PMIx leaves",
       {{"PMIX_RANK", "3"}},
       Launcher::alone,
       0,
       1,
       0,
       1,
       "no launcher's variables are set"},
      {"a place to meet alone",
       {{"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}},
       Launcher::alone,
       0,
       1,
       0,
       1,
       "no launcher's variables are set"},
      {"mpirun", open_mpi("5", "8", "1"), Launcher::mpirun, 5, 8, 1, 8,
       "OMPI_COMM_WORLD_RANK is set"},
      {"mpirun of two hosts", with(open_mpi("5", "8", "1"), {{"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}}),
       Launcher::mpirun, 5, 8, 1, 4, "OMPI_COMM_WORLD_RANK is set"},
      {"torchrun", kTorchrun, Launcher::torchrun, 5, 8, 1, 4, "TORCHELASTIC_RUN_ID is set"},
      {"torchrun --virtual-local-rank", with(kTorchrun, {{"LOCAL_RANK", "0"}}), Launcher::torchrun,
       5, 8, 0, 4, "TORCHELASTIC_RUN_ID is set"},
      {"by hand", kByHand, Launcher::torchrun, 5, 8, 1, 4, "RANK and WORLD_SIZE are set"},
      {"srun", kSrun, Launcher::srun, 3, 4, 1, 2, "this is step 12.3 of Slurm"},
      {"srun on one node", kSrunOneNode, Launcher::srun, 1, 2, 1, 2, "this is step 12.3 of Slurm"},
      {"srun on unlike nodes",
       with(kSrun, {{"SLURM_STEP_NUM_TASKS", "12"},
                    {"SLURM_PROCID", "11"},
                    {"SLURM_LOCALID", "2"},
                    {"SLURM_NODEID", "4"},
                    {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1,3"}}),
       Launcher::srun, 11, 12, 2, 3, "this is step 12.3 of Slurm"},
      {"an old srun without the step's own numbers",
       with(kSrun, {{"SLURM_STEP_NUM_TASKS", ""},
                    {"SLURM_STEP_TASKS_PER_NODE", ""},
                    {"SLURM_STEP_NODELIST", ""}}),
       Launcher::srun, 3, 8, 1, 4, "this is step 12.3 of Slurm"},

      {"alone in a batch script", kBatchScript, Launcher::alone, 0, 1, 0, 1,
       "Slurm's job 12 has not started it with srun"},
      {"alone in the shell of salloc", kSalloc, Launcher::alone, 0, 1, 0, 1,
       "Slurm's job 12 has not started it with srun"},
      {"alone in a shell that salloc made a step",
       with(kBatchScript, {{"SLURM_STEP_ID", "4294967290"}}), Launcher::alone, 0, 1, 0, 1,
       "Slurm's job 12 has not started it with srun"},
      {"mpirun in a batch script",
       with(with(kBatchScript, open_mpi("2", "4", "2")), {{"PMIX_RANK", "2"}}), Launcher::mpirun, 2,
       4, 2, 4, "OMPI_COMM_WORLD_RANK is set, inside Slurm's job 12"},
      {"mpirun whose daemons srun started", with(kSrun, open_mpi("0", "4", "0")), Launcher::mpirun,
       0, 4, 0, 4, "OMPI_COMM_WORLD_RANK is set, inside Slurm's step 12.3"},
      {"torchrun that srun started", with(kSrun, kTorchrun), Launcher::torchrun, 5, 8, 1, 4,
       "TORCHELASTIC_RUN_ID is set, inside Slurm's step 12.3"},
      {"torchrun that mpirun started", with(kTorchrun, open_mpi("0", "2", "0")), Launcher::torchrun,
       5, 8, 1, 4, "TORCHELASTIC_RUN_ID is set, inside mpirun"},
      {"torchrun in a batch script", with(kBatchScript, kTorchrun), Launcher::torchrun, 5, 8, 1, 4,
       "TORCHELASTIC_RUN_ID is set, inside Slurm's job 12"},
      {"a script that copies mpirun's rank",
       with(open_mpi("5", "8", "1"), {{"RANK", "5"}, {"WORLD_SIZE", "8"}}), Launcher::mpirun, 5, 8,
       1, 8, "OMPI_COMM_WORLD_RANK is set"},
      {"a batch script that exports the size and the place to meet",
       with(kSrun, {{"WORLD_SIZE", "4"}, {"MASTER_ADDR", "n1"}, {"MASTER_PORT", "9"}}),
       Launcher::srun, 3, 4, 1, 2, "this is step 12.3 of Slurm"},
  };
  for (const auto& expected : table) {
    SCOPED_TRACE(expected.description);
    const JobEnvironment environment = read(expected.variables);
    EXPECT_EQ(name(environment.launcher), name(expected.launcher));
    EXPECT_EQ(environment.rank, expected.rank);
    EXPECT_EQ(environment.world_size, expected.world_size);
    EXPECT_EQ(environment.local_rank, expected.local_rank);
    EXPECT_EQ(environment.local_size, expected.local_size);
    EXPECT_EQ(environment.why, expected.why);
  }
}

TEST(Environment, WhereProcessesMeet) {
  struct Case {
    const char* description;
    Variables variables;
    Server server;
    const char* host;
    int port;
    const char* start;
  };
  const Variables master{{"MASTER_ADDR", "host-a"}, {"MASTER_PORT", "29500"}};
  const std::vector<Case> table{
      {"alone", {}, Server::rank_zero, "", 0, ""},
      {"mpirun", open_mpi("5", "8", "1"), Server::rank_zero, "", 0, ""},
      {"mpirun with a place", with(open_mpi("5", "8", "1"), master), Server::rank_zero, "host-a",
       29500, ""},
      {"mpirun that names its job", with(open_mpi("5", "8", "1"), {{"PMIX_NAMESPACE", "77"}}),
       Server::rank_zero, "", 0, "mpirun-77"},
      {"torchrun", kTorchrun, Server::launcher, "host-a", 29500, "torchrun-job7-2"},
      {"torchrun whose agent keeps its store",
       with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}}), Server::rank_zero, "host-a",
       29500, "torchrun-job7-2"},
      {"by hand", kByHand, Server::rank_zero, "10.0.0.1", 1234, ""},
      {"srun", kSrun, Server::rank_zero, "gpu003", 20000 + 31 * 12 + 3, "srun-12.3-"},
      {"srun, requeued", with(kSrun, {{"SLURM_RESTART_COUNT", "1"}}), Server::rank_zero, "gpu003",
       20375, "srun-12.3-1"},
      {"srun on one node", kSrunOneNode, Server::rank_zero, "127.0.0.1", 20375, "srun-12.3-"},
      {"srun with a place", with(kSrun, master), Server::rank_zero, "host-a", 29500, "srun-12.3-"},
      {"srun with a port", with(kSrun, {{"MASTER_PORT", "7"}}), Server::rank_zero, "gpu003", 7,
       "srun-12.3-"},
      {"a large job number", with(kSrun, {{"SLURM_JOB_ID", "67108863"}}), Server::rank_zero,
       "gpu003", 20000 + (31 * 67108863 + 3) % 10000, "srun-67108863.3-"},
  };
  for (const auto& expected : table) {
    SCOPED_TRACE(expected.description);
    const Rendezvous meet = read(expected.variables).rendezvous;
    EXPECT_EQ(meet.server, expected.server);
    EXPECT_EQ(meet.host, expected.host);
    EXPECT_EQ(meet.port, expected.port);
    EXPECT_EQ(meet.start, expected.start);
  }
}

TEST(Environment, ASecretIsReadAndAnEmptyOneRefused) {
  EXPECT_EQ(read({{"THINWIRE_SECRET", "s"}}).secret, "s");
  EXPECT_EQ(read({{"THINWIRE_SECRET_FILE", "f"}}).secret_file, "f");
  for (const char* name : {"THINWIRE_SECRET", "THINWIRE_SECRET_FILE"}) {
    try {
      read({{name, ""}});
      ADD_FAILURE() << "accepted";
    } catch (const UsageError& error) {
      EXPECT_EQ(error.what(), std::string(name) + " is set and empty; give a secret, or unset it");
    }
  }
}

TEST(Environment, TheFirstNodeOfAList) {
  const std::pair<const char*, const char*> table[] = {
      {"n1", "n1"},
      {"n1,n2", "n1"},
      {"gpu[7]", "gpu7"},
      {"gpu[003-005,9],login", "gpu003"},
      {"gpu[9,003-005]", "gpu9"},
      {"gpu[003-005]-ib,gpu[1-2]", "gpu003-ib"},
      {"rack[1-2]node[05-06]", "rack1node05"},
      {"a-b-1,c", "a-b-1"},
  };
  for (const auto& [list, node] : table) {
    EXPECT_EQ(read(with(kSrun, {{"SLURM_STEP_NODELIST", list}})).rendezvous.host, node) << list;
  }
}

TEST(Environment, WhetherMpiFindsThePeers) {
  EXPECT_EQ(read({}).mpi, Mpi::absent);
  EXPECT_EQ(read(open_mpi("0", "2", "0")).mpi, Mpi::offered);
  EXPECT_EQ(read(kTorchrun).mpi, Mpi::absent);
  EXPECT_EQ(read(kSrun).mpi, Mpi::absent);
  EXPECT_EQ(read(with(kSrun, {{"PMI_RANK", "3"}})).mpi, Mpi::absent);
  EXPECT_EQ(read(with(kSrun, {{"PMIX_RANK", "3"}})).mpi, Mpi::offered);
}

TEST(Environment, OneLineSaysIt) {
  EXPECT_EQ(describe(read({})), "alone (no launcher's variables are set)");
  EXPECT_EQ(describe(read(kSrun)),
            "srun (this is step 12.3 of Slurm): rank 3 of 4, local rank 1 of 2");
}

TEST(Environment, ContradictionsAreRefused) {
  const std::string by_hand =
      ", which started this process; unset RANK, WORLD_SIZE, LOCAL_RANK and "
      "LOCAL_WORLD_SIZE";
  const std::pair<Variables, std::string> table[] = {
      {{{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}},
       "OMPI_COMM_WORLD_LOCAL_RANK is set, but OMPI_COMM_WORLD_RANK is not; start with mpirun, or "
       "unset OMPI_COMM_WORLD_LOCAL_RANK"},
      {{{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", "0"}},
       "OMPI_COMM_WORLD_SIZE is set, but OMPI_COMM_WORLD_LOCAL_RANK is not; start with mpirun, or "
       "unset OMPI_COMM_WORLD_SIZE"},
      {{{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}},
       "OMPI_COMM_WORLD_LOCAL_RANK is set, but OMPI_COMM_WORLD_SIZE is not; start with mpirun, or "
       "unset OMPI_COMM_WORLD_LOCAL_RANK"},
      {open_mpi("2", "2", "0"), "OMPI_COMM_WORLD_RANK is '2'; give a whole number from 0 to 1"},
      {open_mpi("-1", "2", "0"), "OMPI_COMM_WORLD_RANK is '-1'; give a whole number from 0 to 1"},
      {open_mpi("1", "2", "2"),
       "OMPI_COMM_WORLD_LOCAL_RANK is '2'; give a whole number from 0 to 1"},
      {open_mpi("", "2", "0"), "OMPI_COMM_WORLD_RANK is ''; give a whole number from 0 to 1"},
      {open_mpi("0", "two", "0"),
       "OMPI_COMM_WORLD_SIZE is 'two'; give a whole number from 1 to 1048576"},
      {open_mpi("0", "0", "0"),
       "OMPI_COMM_WORLD_SIZE is '0'; give a whole number from 1 to 1048576"},

      {{{"WORLD_SIZE", "2"}},
       "WORLD_SIZE is set, but LOCAL_WORLD_SIZE is not; start with torchrun, or unset WORLD_SIZE"},
      {with(kByHand, {{"LOCAL_RANK", ""}}),
       "LOCAL_WORLD_SIZE is set, but LOCAL_RANK is not; start with torchrun, or unset "
       "LOCAL_WORLD_SIZE"},
      {with(kByHand, {{"MASTER_PORT", ""}}),
       "MASTER_ADDR is set, but MASTER_PORT is not; start with torchrun, or unset MASTER_ADDR"},
      {with(kTorchrun, {{"RANK", ""}}),
       "MASTER_PORT is set, but RANK is not; start with torchrun, or unset MASTER_PORT"},
      {with(kByHand, {{"RANK", "8"}}), "RANK is '8'; give a whole number from 0 to 7"},
      {with(kByHand, {{"LOCAL_RANK", "4"}}),
       "LOCAL_WORLD_SIZE is '4'; give a whole number from 5 to 8"},
      {with(kByHand, {{"LOCAL_WORLD_SIZE", "9"}}),
       "LOCAL_WORLD_SIZE is '9'; give a whole number from 2 to 8"},
      {with(kByHand, {{"MASTER_PORT", "65536"}}),
       "MASTER_PORT is '65536'; give a whole number from 1 to 65535"},

      {with(kSrun, {{"SLURM_PROCID", ""}}),
       "SLURM_STEP_NODELIST is set, but SLURM_PROCID is not; start with srun, or unset "
       "SLURM_STEP_NODELIST"},
      {with(kSrun, {{"SLURM_PROCID", "4"}}),
       "SLURM_PROCID is '4'; give a whole number from 0 to 3"},
      {with(kSrun, {{"SLURM_LOCALID", "2"}}),
       "SLURM_LOCALID is 2, but SLURM_STEP_TASKS_PER_NODE is '2(x2)'; start with srun"},
      {with(kSrun, {{"SLURM_NODEID", "2"}}),
       "SLURM_STEP_TASKS_PER_NODE is '2(x2)', which has no node 2; start with srun"},
      {with(kSrun, {{"SLURM_NODEID", "0"}, {"SLURM_STEP_TASKS_PER_NODE", "2(y2)"}}),
       "SLURM_STEP_TASKS_PER_NODE is '2(y2)'; give a whole number from 1 to 1048576"},
      {with(kSrun, {{"SLURM_STEP_ID", "batch"}}),
       "SLURM_STEP_ID is 'batch'; give a whole number from 0 to 1099511627776"},

      {with(kSrun, kByHand), "RANK is '5', but it is 3 for srun" + by_hand},
      {with(kSrun, {{"WORLD_SIZE", "8"}}), "WORLD_SIZE is '8', but it is 4 for srun" + by_hand},
      {with(kSrun, {{"LOCAL_RANK", "0"}}), "LOCAL_RANK is '0', but it is 1 for srun" + by_hand},
      {with(open_mpi("1", "2", "1"), {{"RANK", "0"}, {"WORLD_SIZE", "1"}}),
       "RANK is '0', but it is 1 for mpirun" + by_hand},
  };
  for (const auto& [variables, message] : table) {
    try {
      read(variables);
      ADD_FAILURE() << "accepted; expected: " << message;
    } catch (const UsageError& error) {
      EXPECT_EQ(error.what(), message);
    }
  }
}

TEST(Environment, RanksAreThreadsOrProcesses) {
  const JobEnvironment alone = read({});
  const JobEnvironment one = read(open_mpi("0", "1", "0"));
  const JobEnvironment several = read(open_mpi("0", "2", "0"));
  EXPECT_NO_THROW(require_one_kind_of_rank(alone, 4));
  EXPECT_NO_THROW(require_one_kind_of_rank(one, 4));
  EXPECT_NO_THROW(require_one_kind_of_rank(several, 1));
  EXPECT_THROW(require_one_kind_of_rank(several, 2), UsageError);
}

TEST(Environment, SaysWhatTheUserHasLimited) {
  EXPECT_FALSE(read({}).threads_limited);
  EXPECT_FALSE(read({}).devices_limited);
  EXPECT_TRUE(read({{"OMP_NUM_THREADS", "1"}}).threads_limited);
  EXPECT_TRUE(read({{"CUDA_VISIBLE_DEVICES", "0"}}).devices_limited);
}

}  // namespace
}  // namespace thinwire
