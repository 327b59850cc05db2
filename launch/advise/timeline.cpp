#include "launch/advise/timeline.h"

#include <algorithm>

namespace thinwire {

double predict_step(const Timeline& timeline, const Link& link) {
  double now = 0;        // of the communication thread
  double link_free = 0;  // the link carries one operation at a time
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
        link_free = std::max(now, link_free) + link.seconds(event.operation, event.bytes);
        done.push_back(link_free);
        break;
      case TimelineEvent::Kind::wait:
        now = std::max(now, done.at(event.number));
        break;
    }
  }
  return std::max(timeline.backward_end, now) + timeline.tail;
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
