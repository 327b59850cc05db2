// A step's time, from what was measured without a network and what the network costs.
#pragma once

#include <string>
#include <vector>

#include "launch/advise/link.h"

namespace thinwire {

// One thing that a rank's communication thread did in a step.
struct TimelineEvent {
  enum class Kind {
    ready,    // a bucket is full, or the step has begun: what follows happens no sooner than
              // `seconds` after the step's start
    compute,  // arithmetic that takes `seconds`
    post,     // calls the operation `operation`, in which a rank sends `bytes`
    wait,     // waits until the operation `number` is done; posts count from 0
  };
  Kind kind = Kind::compute;
  double seconds = 0;
  std::string operation;
  double bytes = 0;
  std::size_t number = 0;
};

// One step on a rank whose operations took no time.
struct Timeline {
  std::vector<TimelineEvent> events;
  double backward_end = 0;
  double tail = 0;  // from the later of backward and communication to the step's end
};

// Seconds of the same step where operations go over `link` one after the other:
//
//   T = max(end of backward, end of communication) + tail
//
// where the communication thread begins a bucket when it is full and the one before is done. With
// one operation per bucket that is max(gamma T_compute, (k-1) T_comm) + T_comm(last bucket) of
// Agarwal et al. (MLSys 2022), with the gamma and the arithmetic that were measured. The link saves
// up for a burst while no operation is in flight, over many such steps one after the other.
double predict_step(const Timeline& timeline, const Link& link);

// Seconds of all its operations.
double communication(const Timeline& timeline, const Link& link);

}  // namespace thinwire
