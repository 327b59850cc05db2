// What every backend must do: one suite, run over threads, MPI and whatever comes next.
#pragma once

#include "collectives/communicator.h"

namespace thinwire::testing {

// Each function runs on every rank of a fresh group and asserts with GoogleTest. Inputs are small
// integers, so sums are exact and equality is claimed.
void all_reduce_equals_serial_sum(Communicator& communicator);
void all_reduce_every_dtype_and_op(Communicator& communicator);
void reduce_scatter_equals_serial_sum(Communicator& communicator);
void all_gather_uneven_shares(Communicator& communicator);
void all_gather_in_place(Communicator& communicator);
void all_to_all_is_a_transpose(Communicator& communicator);
void broadcast_from_every_root(Communicator& communicator);
void several_operations_in_flight(Communicator& communicator);
void operations_wait_in_any_order(Communicator& communicator);
void sums_are_formed_in_the_order_of_a_ring(Communicator& communicator);
void split_makes_working_groups(Communicator& communicator);
void bytes_sent_are_those_of_direct_algorithms(Communicator& communicator);
void texts_travel(Communicator& communicator);
void barrier_waits_for_all(Communicator& communicator);

// Every entry, for backends whose runner needs a list.
struct ConformanceTest {
  const char* name;
  void (*run)(Communicator&);
};
inline constexpr ConformanceTest kConformanceTests[] = {
    {"AllReduceEqualsSerialSum", all_reduce_equals_serial_sum},
    {"AllReduceEveryDtypeAndOp", all_reduce_every_dtype_and_op},
    {"ReduceScatterEqualsSerialSum", reduce_scatter_equals_serial_sum},
    {"AllGatherUnevenShares", all_gather_uneven_shares},
    {"AllGatherInPlace", all_gather_in_place},
    {"AllToAllIsATranspose", all_to_all_is_a_transpose},
    {"BroadcastFromEveryRoot", broadcast_from_every_root},
    {"SeveralOperationsInFlight", several_operations_in_flight},
    {"OperationsWaitInAnyOrder", operations_wait_in_any_order},
    {"SumsAreFormedInTheOrderOfARing", sums_are_formed_in_the_order_of_a_ring},
    {"SplitMakesWorkingGroups", split_makes_working_groups},
    {"BytesSentAreThoseOfDirectAlgorithms", bytes_sent_are_those_of_direct_algorithms},
    {"TextsTravel", texts_travel},
    {"BarrierWaitsForAll", barrier_waits_for_all},
};

}  // namespace thinwire::testing
