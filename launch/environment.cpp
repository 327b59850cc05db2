#include "launch/environment.h"

#include <fmt/format.h>

#include <string>

#include "runtime/base/error.h"
#include "runtime/base/spec.h"

namespace thinwire {
namespace {

constexpr const char* kRank = "OMPI_COMM_WORLD_RANK";
constexpr const char* kSize = "OMPI_COMM_WORLD_SIZE";
constexpr const char* kLocalRank = "OMPI_COMM_WORLD_LOCAL_RANK";
constexpr const char* kLocalSize = "OMPI_COMM_WORLD_LOCAL_SIZE";
constexpr std::int64_t kLargestWorld = 1 << 20;

}  // namespace

JobEnvironment job_environment(const std::function<const char*(const char*)>& variable) {
  std::string set;
  std::string missing;
  for (const char* name : {kRank, kSize, kLocalRank}) {
    (variable(name) ? set : missing) = name;
  }
  if (set.empty()) return {};
  if (!missing.empty()) {
    throw UsageError(
        fmt::format("{} is set, but {} is not; start with mpirun, or unset {}", set, missing, set));
  }
  const auto number = [&](const char* name, std::int64_t low, std::int64_t high) {
    return static_cast<int>(parse_integer(name, variable(name), low, high));
  };
  JobEnvironment environment;
  environment.launcher = JobEnvironment::Launcher::mpirun;
  environment.world_size = number(kSize, 1, kLargestWorld);
  environment.rank = number(kRank, 0, environment.world_size - 1);
  environment.local_rank = number(kLocalRank, 0, environment.rank);
  environment.local_size =
      variable(kLocalSize) ? number(kLocalSize, environment.local_rank + 1, environment.world_size)
                           : environment.world_size;
  return environment;
}

void require_one_kind_of_rank(const JobEnvironment& environment, std::int64_t ranks) {
  if (environment.world_size > 1 && ranks > 1) {
    throw UsageError(fmt::format(
        "--ranks is {} in each of {} processes of mpirun; leave out --ranks, or start one process",
        ranks, environment.world_size));
  }
}

}  // namespace thinwire
