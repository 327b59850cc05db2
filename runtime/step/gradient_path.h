// The way that gradients take on one rank.
#pragma once

#include "collectives/communicator.h"
#include "collectives/queue.h"

namespace thinwire {

// What carries a rank's gradients and in which queues their arithmetic goes: `compute` has backward
// and the optimizer, `communication` has codecs and exchanges, and the payloads of `communicator`
// are ordered on it. On the host both queues run at once.
struct GradientPath {
  Communicator& communicator;
  Queue& compute;
  Queue& communication;
};

}  // namespace thinwire
