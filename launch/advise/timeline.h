// A step's time, from what was measured without a network and what the network costs.
#pragma once

#include <string>
#include <vector>

#include "launch/advise/link.h"

namespace thinwire {

// What a rank's communication thread did in one step, in its order; times are seconds from the
// step's start.
struct TimelineEvent {
  enum class Kind {
    ready,    // a bucket is full, or the step was begun: nothing before `seconds`
    compute,  // arithmetic of `seconds`
    post,     // operation `operation` of `bytes` is called
    wait,     // until operation number `number` (they count from 0 in the order of posts) is done
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
// Agarwal et al. (MLSys 2022), with the gamma and the arithmetic that were measured. What the link
// saves up for a burst it saves up while no operation is in flight; the step is one of many.
double predict_step(const Timeline& timeline, const Link& link);

// Seconds of all its operations.
double communication(const Timeline& timeline, const Link& link);

}  // namespace thinwire
