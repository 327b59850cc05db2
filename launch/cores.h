// Which processors a job's ranks may use, and how many of them a rank's arithmetic gets.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/base/team.h"
#include "collectives/communicator.h"
#include "collectives/compression/kernels/choose.h"

namespace thinwire {

// The processors of one rank's process.
struct Processors {
  std::string host;
  std::string allowed;  // character i is '1' where the process may run on processor i
  double quota = 0;     // processors' worth of time that its control group gets; 0: no limit
};

// Of this process: what the launcher bound it to, and its container's limit.
Processors processors_of_this_process();

// How many processors are rank `rank`'s, where those on which several ranks of a host may run are
// divided among them, and a host's quota among its ranks. At least 1.
double share_of(const std::vector<Processors>& ranks, std::size_t rank);

// The threads that --exchange-threads `words` asks for, its caller's included: a number, which may
// not be above `allowed`, or "auto", what `share` leaves beside `busy` others, from 1 to 4. Throws
// `UsageError`.
int exchange_threads(const std::string& words, double share, int busy, int allowed);

// Collective. The threads of this rank's exchange, which run where its process may run. `busy`: how
// many other threads compute on this rank. Null: one thread, the caller's.
std::shared_ptr<Team> make_team(Communicator& communicator, const std::string& words, int busy);

// The kernels that --kernels `words` asks for: a form of them, or "auto", which measures where
// `values` gradients are so many that a tenth of a second is soon won back. Throws `UsageError`.
ChosenKernels choose_kernels(const std::string& words, std::int64_t values);

// A line for each kernel: what every form of it took, and which was chosen.
std::string describe(const ChosenKernels& chosen);

}  // namespace thinwire
