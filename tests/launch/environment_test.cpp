#include "launch/environment.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "runtime/base/error.h"

namespace thinwire {
namespace {

using Variables = std::map<std::string, std::string>;
using Launcher = JobEnvironment::Launcher;

JobEnvironment read(const Variables& variables) {
  return job_environment([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

Variables open_mpi(const std::string& rank, const std::string& size, const std::string& local) {
  return {{"OMPI_COMM_WORLD_RANK", rank},
          {"OMPI_COMM_WORLD_SIZE", size},
          {"OMPI_COMM_WORLD_LOCAL_RANK", local}};
}

TEST(Environment, AloneWithoutALauncher) {
  const JobEnvironment environment = read({{"PMIX_RANK", "3"}});
  EXPECT_EQ(environment.launcher, Launcher::alone);
  EXPECT_EQ(environment.rank, 0);
  EXPECT_EQ(environment.world_size, 1);
  EXPECT_EQ(environment.local_rank, 0);
}

TEST(Environment, UnderMpirun) {
  const JobEnvironment environment = read(open_mpi("5", "8", "1"));
  EXPECT_EQ(environment.launcher, Launcher::mpirun);
  EXPECT_EQ(environment.rank, 5);
  EXPECT_EQ(environment.world_size, 8);
  EXPECT_EQ(environment.local_rank, 1);
}

TEST(Environment, ContradictionsAreRefused) {
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

}  // namespace
}  // namespace thinwire
