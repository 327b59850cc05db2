// All ranks agree on what they are about to do, or all throw.
#pragma once

#include <memory>

#include "collectives/communicator.h"

namespace thinwire {

// Decorator: before every operation all ranks compare (sequence number, operation, dtype, counts,
// root); where they differ, every rank throws `RanksDisagree` with a sentence and the group is
// poisoned. Costs one small all_gather per operation, so it is for debugging and tests.
std::unique_ptr<Communicator> make_checked(std::unique_ptr<Communicator> inner);

}  // namespace thinwire
