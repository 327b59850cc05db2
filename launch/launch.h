// A program whose ranks are processes that any launcher starts, or threads that it starts itself.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "collectives/communicator.h"
#include "launch/environment.h"
#include "launch/job.h"

namespace thinwire {

struct LaunchOptions {
  std::int64_t ranks = 1;        // threads, where no launcher has started several processes
  std::string backend = "auto";  // auto | threads | mpi | sockets
  std::chrono::milliseconds timeout{60000};  // of an operation between ranks
  // Tells jobs apart that meet at the same place, where no launcher gives them names.
  std::string job_id = {};
};

namespace detail {

int launch(const std::vector<std::string>& arguments, const RankBody& body, LaunchOptions options);

template <typename Body>
RankBody rank_body(Body body) {
  if constexpr (std::is_void_v<std::invoke_result_t<Body&, std::unique_ptr<Communicator>>>) {
    return [body](std::unique_ptr<Communicator> ranks) mutable {
      body(std::move(ranks));
      return 0;
    };
  } else {
    return body;
  }
}

}  // namespace detail

// Runs `body` once for each rank that this process has, started as `thinwire train` is, and returns
// the exit code of the process:
//
//   int main(int argc, char** argv) {
//     return thinwire::launch(argc, argv, [](std::unique_ptr<thinwire::Communicator> ranks) {
//       train(*ranks);
//     });
//   }
//
// Under mpirun, srun or torchrun each process is one rank; otherwise there are `options.ranks`
// threads. `--ranks N`, `--backend WORD` and `--job-id TEXT` among the arguments win over the
// options; all other arguments are left to the program. Ranks that are threads call the same
// `body`, several at once. It returns nothing, or an exit code. An exception that leaves it is
// printed to stderr and ends the job with the code that the README lists.
//
// Rank 0 prints to stderr which launcher it believes and over what the ranks meet. Each rank gets
// its share of the host's cores, unless OMP_NUM_THREADS is set, and libtorch is asked for huge
// pages: call this before the first tensor is made.
template <typename Body>
int launch(int argc, char** argv, Body body, LaunchOptions options = {}) {
  return detail::launch({argv + (argc > 0 ? 1 : 0), argv + argc},
                        detail::rank_body(std::move(body)), std::move(options));
}

// The same for programs that read their arguments themselves.
template <typename Body>
int launch(LaunchOptions options, Body body) {
  return detail::launch({}, detail::rank_body(std::move(body)), std::move(options));
}

// Runs one process of a job and returns its exit code. What `program` throws is reported by this
// rank; a `UsageError`, which all ranks throw alike, by rank 0.
int run_reported(const std::function<int(const JobEnvironment&)>& program);

}  // namespace thinwire
