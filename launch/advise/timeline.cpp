#include "launch/advise/timeline.h"

#include <algorithm>

namespace thinwire {
namespace {

// A link that carries one operation at a time.
struct LinkState {
  double free = 0;    // when the last operation is done, from the step's start
  double credit = 0;  // seconds that the next one may save
};

// Posts an operation at `now`; returns when it is done.
double carry(LinkState& state, const Link& link, const TimelineEvent& operation, double now) {
  const double start = std::max(now, state.free);
  state.credit = std::min(link.burst(), state.credit + start - state.free);
  const LinkCurve& curve = link.curve(operation.operation);
  const double full = curve.seconds(operation.bytes);
  const double saved = std::clamp(full - curve.latency(), 0.0, state.credit);
  state.credit -= saved;
  state.free = start + full - saved;
  return state.free;
}

// The step's time; leaves the link as the next step finds it.
double run(const Timeline& timeline, const Link& link, LinkState& state) {
  double now = 0;  // of the communication thread
  std::vector<double> done;
  for (const TimelineEvent& event : timeline.events) {
    switch (event.kind) {
      case TimelineEvent::Kind::ready:
        now = std::max(now, event.seconds);
        break;
      case TimelineEvent::Kind::compute:
        now += event.seconds;
        break;
      case TimelineEvent::Kind::post:
        done.push_back(carry(state, link, event, now));
        break;
      case TimelineEvent::Kind::wait:
        now = std::max(now, done.at(event.number));
        break;
    }
  }
  const double end = std::max(timeline.backward_end, now) + timeline.tail;
  state.free -= end;
  return end;
}

}  // namespace

double predict_step(const Timeline& timeline, const Link& link) {
  LinkState state{.credit = link.burst()};
  run(timeline, link, state);
  return run(timeline, link, state);
}

double communication(const Timeline& timeline, const Link& link) {
  double seconds = 0;
  for (const TimelineEvent& event : timeline.events) {
    if (event.kind == TimelineEvent::Kind::post) {
      seconds += link.seconds(event.operation, event.bytes);
    }
  }
  return seconds;
}

}  // namespace thinwire
