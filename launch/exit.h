// How a process ends: what it says, and its exit code.
#pragma once

#include <exception>
#include <optional>
#include <string>

#include "collectives/base/error.h"

namespace thinwire {

// A peer was lost and the operator has been told so already: `report` prints nothing more.
struct PeerLostSaid : PeerLost {
  using PeerLost::PeerLost;
};

// The code of an `Error`; `ExitCode::internal` for everything else.
int exit_code(const std::exception& error);

// What to tell the operator: without libtorch's stack trace, and with advice where there is any.
std::string message(const std::exception& error);

// Prints "thinwire: <message>", made printable by `printable_lines`, to stderr, or "thinwire: rank
// 3: <message>" where `rank` is given (give it when there are several ranks). Returns the exit
// code. For a `PeerLostSaid` it prints nothing.
int report(const std::exception& error, std::optional<int> rank);

// Waits a second where another rank ought to speak before this one leaves: launchers end all
// processes as soon as one has failed.
void let_others_speak();

// How a rank that is a process ends when an exception has left it. `end_together` is for an error
// that all ranks throw alike, which only rank 0 reports; `end_alone` for any other error, which the
// rank that has it reports. Both return the exit code.
int end_together(const AgreedError& error, int rank);
int end_alone(const std::exception& error, int rank);

// All exit codes and their meaning, a line each, for the help.
std::string exit_code_table();

}  // namespace thinwire
