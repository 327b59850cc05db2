// Ranks as processes of an MPI job. Two libraries define these functions, one with MPI and one
// without, and a program links one of the two. So one installed thinwire serves programs with MPI
// and programs without it.
#pragma once

#include "launch/job.h"

namespace thinwire {

bool linked_with_mpi();

// `run_job` over MPI.
int run_over_mpi(const Job& job, const RankBody& body);

}  // namespace thinwire
