// What the ends of a lifeline say to each other. A message is a line: a word and its arguments.
#pragma once

#include <string>
#include <string_view>

#include "runtime/watch/flight_recorder.h"

namespace thinwire::watch {

struct Message {
  enum class Kind {
    report,  // an activity
    lost,    // rank 0 says who was lost
    failed,  // the sender's last message: why it ends
    bye,     // its last message: it ends because the run ends on all ranks
    none,    // a line that no rank would send
  };
  Kind kind = Kind::none;
  Activity activity;  // of a report
  std::string text;   // of `lost` and `failed`: printable, at most some 2,000 characters
};

std::string report_line(const Activity& activity);
std::string lost_line(const std::string& reason);
std::string fail_line(const std::string& reason);
std::string bye_line();

// A line with an unknown word, or with a number that is out of its range, is a message of kind
// `none`.
Message parse_message(std::string_view line);

}  // namespace thinwire::watch
