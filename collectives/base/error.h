// Errors in two families. What an operator can fix or survive is an `Error`: what is wrong, then
// what to do, and the exit code that a program should end with. What only a bug can cause is a
// failed `check`, which prints both values.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace thinwire {

// Process exit codes (sysexits where one fits).
enum class ExitCode : int {
  done = 0,
  usage = 2,
  bad_data = 65,
  internal = 70,
  peer_lost = 71,
  cannot_write = 73,
  io_error = 74,
  stopped_with_checkpoint = 75,
  ranks_disagree = 76,
  configuration_mismatch = 78,
};

// Something the operator can fix or survive. `what()` is "<what is wrong>; <what to do>".
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// A flag, a config key or an argument that cannot be used (exit 2).
struct UsageError : Error {
  explicit UsageError(const std::string& message) : Error(ExitCode::usage, message) {}
};
// A data file or a checkpoint that is damaged or not what it claims to be (exit 65).
struct DataError : Error {
  explicit DataError(const std::string& message) : Error(ExitCode::bad_data, message) {}
};
// A collective that did not end: a peer failed, stopped, or gave up (exit 71).
struct PeerLost : Error {
  explicit PeerLost(const std::string& message) : Error(ExitCode::peer_lost, message) {}
};
// An operating-system call on a file failed (exit 74).
struct IoError : Error {
  explicit IoError(const std::string& message) : Error(ExitCode::io_error, message) {}
};
// Ranks hold different values where they must hold the same (exit 76).
struct RanksDisagree : Error {
  explicit RanksDisagree(const std::string& message) : Error(ExitCode::ranks_disagree, message) {}
};
// An error that every rank of the group throws alike, so that they can end together.
struct AgreedError : Error {
  using Error::Error;
};
// Ranks were started with different configurations, layouts or data (exit 78).
struct ConfigurationMismatch : AgreedError {
  explicit ConfigurationMismatch(const std::string& message)
      : AgreedError(ExitCode::configuration_mismatch, message) {}
};

// A broken invariant: a bug in this program or in the code that calls it (exit 70).
class Bug : public std::logic_error {
  using std::logic_error::logic_error;
};

namespace detail {
[[noreturn]] void check_failed(std::string_view what, const std::string& values,
                               const std::source_location& where);
}

// Throws `Bug` with the place of the call unless `condition` holds.
inline void check(bool condition, std::string_view what,
                  const std::source_location& where = std::source_location::current()) {
  if (!condition) detail::check_failed(what, "", where);
}

// Throws `Bug` with both values unless they are equal.
template <typename A, typename B>
void check_equal(const A& a, const B& b, std::string_view what,
                 const std::source_location& where = std::source_location::current()) {
  if (!(a == b)) {
    detail::check_failed(what, std::to_string(a) + " vs " + std::to_string(b), where);
  }
}

}  // namespace thinwire
