// What every backend that moves bytes must do with several groups, and when ranks leave or
// disagree.
#pragma once

#include "tests/conformance/suite.h"

namespace thinwire::testing {

// Each runs on every rank of a fresh group, on parts split off from it, and leaves it usable. An
// end that should come at once must come long before the group's timeout, which is a minute.
void a_rank_that_left_is_missed_at_once(Communicator& communicator);
void what_a_leaver_took_part_in_completes(Communicator& communicator);
void many_groups_come_and_go(Communicator& communicator);
void two_groups_are_used_by_two_threads(Communicator& communicator);
void operations_of_two_groups_start_in_any_order(Communicator& communicator);
void abort_of_a_part_leaves_the_whole(Communicator& communicator);
void abort_of_the_whole_ends_its_parts(Communicator& communicator);
void ranks_that_call_different_operations_are_told(Communicator& communicator);

inline constexpr ConformanceTest kGroupTests[] = {
    {"ARankThatLeftIsMissedAtOnce", a_rank_that_left_is_missed_at_once},
    {"WhatALeaverTookPartInCompletes", what_a_leaver_took_part_in_completes},
    {"ManyGroupsComeAndGo", many_groups_come_and_go},
    {"TwoGroupsAreUsedByTwoThreads", two_groups_are_used_by_two_threads},
    {"OperationsOfTwoGroupsStartInAnyOrder", operations_of_two_groups_start_in_any_order},
    {"AbortOfAPartLeavesTheWhole", abort_of_a_part_leaves_the_whole},
    {"AbortOfTheWholeEndsItsParts", abort_of_the_whole_ends_its_parts},
    {"RanksThatCallDifferentOperationsAreTold", ranks_that_call_different_operations_are_told},
};

}  // namespace thinwire::testing
