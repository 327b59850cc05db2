// Ranks as processes of an MPI job. Two libraries define this, with MPI and without, so that one
// installed thinwire serves programs that have MPI and programs that have not: each links one.
#pragma once

#include "launch/job.h"

namespace thinwire {

bool linked_with_mpi();

// `run_job` over MPI.
int run_over_mpi(const Job& job, const RankBody& body);

}  // namespace thinwire
