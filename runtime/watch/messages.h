// What the ends of a lifeline say to each other: lines, each a word and what it needs.
#pragma once

#include <string>
#include <string_view>

#include "runtime/watch/flight_recorder.h"

namespace thinwire::watch {

struct Message {
  enum class Kind {
    report,  // an activity
    lost,    // rank 0 says who was lost
    failed,  // the sender's last: why it ends
    bye,     // its last: it ends as all do
    none,    // what no rank says
  };
  Kind kind = Kind::none;
  Activity activity;  // of a report
  std::string text;   // of a loss and a failure: fit to be shown, at most some 2,000 characters
};

std::string report_line(const Activity& activity);
std::string lost_line(const std::string& reason);
std::string fail_line(const std::string& reason);
std::string bye_line();

// Numbers out of their range and unknown words make it `none`.
Message parse_message(std::string_view line);

}  // namespace thinwire::watch
