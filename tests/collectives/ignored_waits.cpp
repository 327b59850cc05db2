// Leaves out, one at a time, each wait for a stream or an event that the code makes, and expects
// that on some seed the results are wrong. Prints each wait and the seed that showed it.
//
// A wait that no seed misses is either superfluous or not tested; both fail. To cover more code,
// add a scenario that runs it to kScenarios.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <string_view>

#include "tests/collectives/nccl_scenario.h"
#include "tests/runtime/step_scenario.h"

namespace thinwire::testing {
namespace {

struct NamedScenario {
  const char* name;
  Scenario run;
  std::uint64_t kinds;  // with so many seeds it has done all that it does
};
constexpr NamedScenario kScenarios[] = {
    {"nccl", nccl_scenario, 1},
    {"step", step_scenario, kStepScenarioKinds},
};

constexpr std::uint64_t kSeeds = 300;
constexpr unsigned kSecondsPerRun = 120;

// "collectives/nccl/nccl_communicator.cpp", wherever the sources lie. A compiler cache may have
// made the name relative to the build folder.
std::string shown(const WaitSite& site) {
  constexpr std::string_view root = THINWIRE_SOURCE_DIR;
  std::string file = site.file;
  if (file.compare(0, root.size(), root) == 0) file.erase(0, root.size() + 1);
  while (file.compare(0, 3, "../") == 0) file.erase(0, 3);
  return fmt::format("{}:{}", file, site.line);
}

// Tests wait for themselves.
bool is_of_a_test(const WaitSite& site) {
  return shown(site).rfind("tests/", 0) == 0;
}

// What a run without the wait shows; empty: nothing. In a process of its own: such a run may write
// to memory that has been freed, or never end.
std::string run_without(const NamedScenario& scenario, std::uint64_t seed, const WaitSite& site) {
  int pipes[2];
  if (pipe(pipes) != 0) return "pipe failed";
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(kSecondsPerRun);
    const ScenarioResult result = scenario.run(seed, site);
    const std::string problem = result.problems.empty() ? "" : result.problems.front();
    const ssize_t written = write(pipes[1], problem.data(), problem.size());
    _exit(problem.empty() ? 0 : written > 0 ? 1 : 2);
  }
  close(pipes[1]);
  std::string text(2000, '\0');
  const ssize_t got = read(pipes[0], text.data(), text.size());
  close(pipes[0]);
  text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  if (!text.empty()) return text;
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? "did not end" : "crashed";
}

int run() {
  std::map<WaitSite, std::vector<NamedScenario>> sites;
  for (const NamedScenario& scenario : kScenarios) {
    // A scenario does something else with another seed.
    std::set<WaitSite> of_scenario;
    for (std::uint64_t seed = 0; seed < scenario.kinds; ++seed) {
      const ScenarioResult whole = scenario.run(seed, {});
      for (const std::string& problem : whole.problems) {
        std::printf("scenario %s fails with all waits in place: %s\n", scenario.name,
                    problem.c_str());
        return 1;
      }
      of_scenario.insert(whole.sites.begin(), whole.sites.end());
    }
    // Also where no wait is left out but the process is a forked one, as below.
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      const std::string problem = run_without(scenario, seed, {"nowhere", 0});
      if (problem.empty()) continue;
      std::printf("scenario %s fails in a process of its own, seed %d: %s\n", scenario.name,
                  static_cast<int>(seed), problem.c_str());
      return 1;
    }
    for (const WaitSite& site : of_scenario) {
      if (!is_of_a_test(site)) sites[site].push_back(scenario);
    }
  }
  int missed = 0;
  for (const auto& [site, scenarios] : sites) {
    std::string found;
    for (std::uint64_t seed = 0; seed < kSeeds && found.empty(); ++seed) {
      for (const NamedScenario& scenario : scenarios) {
        const std::string problem = run_without(scenario, seed, site);
        if (problem.empty()) continue;
        found = fmt::format("caught by {}, seed {}: {}", scenario.name, seed, problem);
        break;
      }
    }
    if (found.empty()) {
      ++missed;
      found = fmt::format("NOT CAUGHT by {} seeds", kSeeds);
    }
    std::printf("%s  %s\n", shown(site).c_str(), found.c_str());
    std::fflush(stdout);
  }
  std::printf("%zu waits, %d not caught\n", sites.size(), missed);
  return missed == 0 && !sites.empty() ? 0 : 1;
}

}  // namespace
}  // namespace thinwire::testing

int main() {
  return thinwire::testing::run();
}
