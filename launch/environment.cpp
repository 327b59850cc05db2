#include "launch/environment.h"

#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <initializer_list>
#include <utility>
#include <vector>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"

namespace thinwire {
namespace {

using Launcher = JobEnvironment::Launcher;

constexpr std::int64_t kLargestWorld = 1 << 20;
constexpr std::int64_t kLargestNumber = std::int64_t{1} << 40;  // of a job or a step
// Slurm counts the steps of srun from 0; from here on numbers mark what is no such step, e.g. a
// batch script or the shell of salloc.
constexpr std::int64_t kFirstSpecialStep = 0xfffffff0;
// Below the ports that systems give to outgoing connections.
constexpr std::int64_t kFirstPort = 20000;
constexpr std::int64_t kPorts = 10000;

// Rank and size among all processes, then among those of this host.
using PlaceNames = std::array<const char*, 4>;
constexpr PlaceNames kOpenMpi{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                              "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"};
constexpr PlaceNames kTorch{"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};

// The environment, with the checks that every launcher's variables need.
class Variables {
 public:
  explicit Variables(const std::function<const char*(const char*)>& variable)
      : variable_(variable) {}

  bool has(const char* name) const { return variable_(name) != nullptr; }
  std::string text(const char* name) const { return has(name) ? variable_(name) : ""; }
  std::int64_t number(const char* name, std::int64_t low, std::int64_t high) const {
    return parse_integer(name, text(name), low, high);
  }
  // Empty only where it is not set: a secret that is empty by mistake would be none, silently.
  std::string not_empty(const char* name) const {
    if (has(name) && text(name).empty()) {
      throw UsageError(fmt::format("{} is set and empty; give a secret, or unset it", name));
    }
    return text(name);
  }
  // The first of `names` that is set.
  const char* either(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      if (has(name)) return name;
    }
    return *names.begin();
  }
  // Whether all of `names` are set, not none. Throws `UsageError` if only some are.
  bool complete(const std::string& launcher, std::initializer_list<const char*> names) const {
    std::string set;
    std::string missing;
    for (const char* name : names) (has(name) ? set : missing) = name;
    if (set.empty()) return false;
    if (missing.empty()) return true;
    throw UsageError(fmt::format("{} is set, but {} is not; start with {}, or unset {}", set,
                                 missing, launcher, set));
  }
  void read_place(const PlaceNames& names, JobEnvironment& environment) const {
    const auto& [rank, size, local_rank, local_size] = names;
    environment.world_size = static_cast<int>(number(size, 1, kLargestWorld));
    environment.rank = static_cast<int>(number(rank, 0, environment.world_size - 1));
    environment.local_rank = static_cast<int>(number(local_rank, 0, environment.rank));
    environment.local_size = environment.world_size;
    if (!has(local_size)) return;
    environment.local_size =
        static_cast<int>(number(local_size, environment.local_rank + 1, environment.world_size));
  }
  void read_master(Rendezvous& rendezvous) const {
    if (has("MASTER_ADDR")) rendezvous.host = text("MASTER_ADDR");
    if (has("MASTER_PORT")) {
      rendezvous.port = static_cast<int>(number("MASTER_PORT", 1, 65535));
    }
  }

 private:
  const std::function<const char*(const char*)>& variable_;
};

// The elements of one of Slurm's lists: commas in brackets separate no elements.
std::vector<std::string> elements_of(const std::string& list) {
  std::vector<std::string> elements(1);
  bool bracket = false;
  for (const char c : list) {
    if (c == '[' || c == ']') bracket = c == '[';
    if (c == ',' && !bracket) {
      elements.emplace_back();
    } else {
      elements.back() += c;
    }
  }
  return elements;
}

// "gpu[003-005,9]-ib,login" -> "gpu003-ib".
std::string first_node(const std::string& list) {
  const std::string element = elements_of(list).front();
  const std::size_t open = element.find('[');
  const std::size_t close = element.find(']');
  if (open == std::string::npos || close == std::string::npos) return element;
  const std::string numbers = element.substr(open + 1, close - open - 1);
  return element.substr(0, open) + numbers.substr(0, numbers.find_first_of("-,")) +
         first_node(element.substr(close + 1));
}

// How many tasks node number `node` runs, from "2(x3),1": 2 each on nodes 0 to 2, 1 on node 3.
std::int64_t tasks_of_node(const char* name, const std::string& list, std::int64_t node) {
  std::int64_t seen = 0;
  for (const std::string& element : elements_of(list)) {
    const std::size_t times = element.find("(x");
    std::int64_t nodes = 1;
    if (times != std::string::npos) {
      const std::string count = element.substr(times + 2);
      nodes = parse_integer(name, count.substr(0, count.find(')')), 1, kLargestWorld);
    }
    seen += nodes;
    if (node < seen) return parse_integer(name, element.substr(0, times), 1, kLargestWorld);
  }
  throw UsageError(
      fmt::format("{} is '{}', which has no node {}; start with srun", name, list, node));
}

bool in_step(const Variables& variables) {
  return variables.has("SLURM_STEP_ID") &&
         variables.number("SLURM_STEP_ID", 0, kLargestNumber) < kFirstSpecialStep;
}

std::string job_and_step(const Variables& variables) {
  return fmt::format("{}.{}", variables.text("SLURM_JOB_ID"), variables.text("SLURM_STEP_ID"));
}

// What is around the launcher that was believed, for its reason.
std::string around(const Variables& variables, bool mpirun) {
  if (mpirun) return ", inside mpirun";
  if (in_step(variables)) return fmt::format(", inside Slurm's step {}", job_and_step(variables));
  if (!variables.has("SLURM_JOB_ID")) return "";
  return fmt::format(", inside Slurm's job {}", variables.text("SLURM_JOB_ID"));
}

JobEnvironment from_torchrun(const Variables& variables) {
  JobEnvironment environment;
  environment.launcher = Launcher::torchrun;
  variables.complete("torchrun", {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
                                  "MASTER_ADDR", "MASTER_PORT"});
  variables.read_place(kTorch, environment);
  Rendezvous& rendezvous = environment.rendezvous;
  variables.read_master(rendezvous);
  // torchrun's agent usually serves the store at this address itself.
  if (variables.text("TORCHELASTIC_USE_AGENT_STORE") == "True") {
    rendezvous.server = Rendezvous::Server::launcher;
  }
  if (variables.has("TORCHELASTIC_RUN_ID")) {
    rendezvous.start = fmt::format("torchrun-{}-{}", variables.text("TORCHELASTIC_RUN_ID"),
                                   variables.text("TORCHELASTIC_RESTART_COUNT"));
  }
  return environment;
}

JobEnvironment from_mpirun(const Variables& variables) {
  JobEnvironment environment;
  environment.launcher = Launcher::mpirun;
  environment.mpi = JobEnvironment::Mpi::offered;
  variables.read_place(kOpenMpi, environment);
  variables.read_master(environment.rendezvous);
  const char* job = variables.either({"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"});
  if (variables.has(job)) environment.rendezvous.start = "mpirun-" + variables.text(job);
  environment.why = "OMPI_COMM_WORLD_RANK is set" + around(variables, false);
  return environment;
}

JobEnvironment from_srun(const Variables& variables) {
  const char* size = variables.either({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
  const char* tasks = variables.either({"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"});
  const char* nodes = variables.either({"SLURM_STEP_NODELIST", "SLURM_NODELIST"});
  variables.complete("srun", {"SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID",
                              "SLURM_NODEID", size, tasks, nodes});
  JobEnvironment environment;
  environment.launcher = Launcher::srun;
  // Open MPI speaks PMIx with srun, nothing else: without it MPI_Init ends the process.
  if (variables.has("PMIX_RANK")) environment.mpi = JobEnvironment::Mpi::offered;
  variables.read_place({"SLURM_PROCID", size, "SLURM_LOCALID", ""}, environment);
  const std::int64_t node = variables.number("SLURM_NODEID", 0, kLargestWorld);
  environment.local_size = static_cast<int>(tasks_of_node(tasks, variables.text(tasks), node));
  if (environment.local_rank >= environment.local_size) {
    throw UsageError(fmt::format("SLURM_LOCALID is {}, but {} is '{}'; start with srun",
                                 environment.local_rank, tasks, variables.text(tasks)));
  }
  const std::int64_t job = variables.number("SLURM_JOB_ID", 0, kLargestNumber);
  const std::int64_t step = variables.number("SLURM_STEP_ID", 0, kLargestNumber);
  Rendezvous& rendezvous = environment.rendezvous;
  rendezvous.host = environment.local_size == environment.world_size
                        ? "127.0.0.1"
                        : first_node(variables.text(nodes));
  rendezvous.port = static_cast<int>(kFirstPort + (31 * job + step) % kPorts);
  rendezvous.start =
      fmt::format("srun-{}-{}", job_and_step(variables), variables.text("SLURM_RESTART_COUNT"));
  variables.read_master(rendezvous);
  environment.why = fmt::format("this is step {} of Slurm", job_and_step(variables));
  return environment;
}

// Scripts set RANK and its like by hand; they must then mean the same as the launcher's own.
void require_agreement(const Variables& variables, const JobEnvironment& environment) {
  const int values[] = {environment.rank, environment.world_size, environment.local_rank,
                        environment.local_size};
  for (std::size_t i = 0; i < kTorch.size(); ++i) {
    const char* variable = kTorch.at(i);
    if (!variables.has(variable) || variables.text(variable) == std::to_string(values[i])) continue;
    throw UsageError(
        fmt::format("{} is '{}', but it is {} for {}, which started this process; "
                    "unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE",
                    variable, variables.text(variable), values[i], name(environment.launcher)));
  }
}

}  // namespace

namespace {

JobEnvironment believed(const Variables& variables) {
  const bool mpirun = variables.complete("mpirun", {kOpenMpi[0], kOpenMpi[1], kOpenMpi[2]});
  if (variables.has("TORCHELASTIC_RUN_ID")) {
    JobEnvironment environment = from_torchrun(variables);
    environment.why = "TORCHELASTIC_RUN_ID is set" + around(variables, mpirun);
    return environment;
  }
  if (mpirun || in_step(variables)) {
    JobEnvironment environment = mpirun ? from_mpirun(variables) : from_srun(variables);
    require_agreement(variables, environment);
    return environment;
  }
  if (variables.complete("torchrun", {kTorch[0], kTorch[1], kTorch[2], kTorch[3]})) {
    JobEnvironment environment = from_torchrun(variables);
    environment.why = "RANK and WORLD_SIZE are set" + around(variables, false);
    return environment;
  }
  JobEnvironment environment;
  if (variables.has("SLURM_JOB_ID")) {
    environment.why =
        fmt::format("Slurm's job {} has not started it with srun", variables.text("SLURM_JOB_ID"));
  }
  return environment;
}

}  // namespace

JobEnvironment job_environment(const std::function<const char*(const char*)>& variable) {
  const Variables variables(variable);
  JobEnvironment environment = believed(variables);
  environment.devices_limited = variables.has("CUDA_VISIBLE_DEVICES");
  environment.threads_limited = variables.has("OMP_NUM_THREADS");
  environment.secret = variables.not_empty("THINWIRE_SECRET");
  environment.secret_file = variables.not_empty("THINWIRE_SECRET_FILE");
  return environment;
}

JobEnvironment job_environment() {
  return job_environment([](const char* name) { return std::getenv(name); });
}

std::string name(JobEnvironment::Launcher launcher) {
  switch (launcher) {
    case Launcher::alone:
      return "alone";
    case Launcher::mpirun:
      return "mpirun";
    case Launcher::srun:
      return "srun";
    case Launcher::torchrun:
      return "torchrun";
  }
  throw Bug("bug: a launcher without a name");
}

std::string describe(const JobEnvironment& environment) {
  if (environment.launcher == Launcher::alone) return fmt::format("alone ({})", environment.why);
  return fmt::format("{} ({}): rank {} of {}, local rank {} of {}", name(environment.launcher),
                     environment.why, environment.rank, environment.world_size,
                     environment.local_rank, environment.local_size);
}

void require_one_kind_of_rank(const JobEnvironment& environment, std::int64_t ranks) {
  if (environment.world_size > 1 && ranks > 1) {
    throw UsageError(fmt::format(
        "--ranks is {} in each of {} processes of {}; leave out --ranks, or start one process",
        ranks, environment.world_size, name(environment.launcher)));
  }
}

}  // namespace thinwire
