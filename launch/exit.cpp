#include "launch/exit.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <new>
#include <thread>
#include <utility>

#include "collectives/base/text.h"

namespace thinwire {

int exit_code(const std::exception& error) {
  const auto* known = dynamic_cast<const Error*>(&error);
  return static_cast<int>(known ? known->code() : ExitCode::internal);
}

std::string message(const std::exception& error) {
  if (const auto* torch = dynamic_cast<const c10::Error*>(&error)) {
    return "libtorch: " + without_stack(torch->what_without_backtrace());
  }
  if (dynamic_cast<const std::bad_alloc*>(&error)) {
    return "out of memory; use a smaller --batch-size or fewer ranks on this host";
  }
  // It may have been put into words of ours.
  return without_stack(error.what());
}

int report(const std::exception& error, std::optional<int> rank) {
  if (dynamic_cast<const PeerLostSaid*>(&error)) return exit_code(error);
  const std::string who = rank ? fmt::format("thinwire: rank {}: ", *rank) : "thinwire: ";
  // One call, so that the lines of ranks do not mix.
  std::fputs((who + printable_lines(message(error)) + "\n").c_str(), stderr);
  return exit_code(error);
}

void let_others_speak() {
  std::this_thread::sleep_for(std::chrono::seconds(1));
}

int end_together(const AgreedError& error, int rank) {
  if (rank == 0) return report(error, std::nullopt);
  let_others_speak();
  return exit_code(error);
}

int end_alone(const std::exception& error, int rank) {
  const int code = report(error, rank);
  // A rank that failed on its own tells its peers before it says why itself: let it come first.
  if (dynamic_cast<const PeerLost*>(&error)) let_others_speak();
  return code;
}

std::string exit_code_table() {
  const std::pair<ExitCode, const char*> table[] = {
      {ExitCode::done, "done"},
      {ExitCode::usage, "a flag, a config key or an argument cannot be used"},
      {ExitCode::bad_data, "a data file or a checkpoint is damaged"},
      {ExitCode::internal, "a bug, an error inside libtorch, or no memory left"},
      {ExitCode::peer_lost, "another rank failed, stopped or did not answer in time"},
      {ExitCode::cannot_write, "the output cannot be written, or is another run's"},
      {ExitCode::io_error, "a file cannot be read or written"},
      {ExitCode::stopped_with_checkpoint,
       "stopped by a signal, with a checkpoint once it has trained; use --resume auto"},
      {ExitCode::ranks_disagree, "ranks hold different values where they must be equal"},
      {ExitCode::configuration_mismatch, "ranks were started with different options or data"},
  };
  std::string text;
  for (const auto& [code, meaning] : table) {
    text += fmt::format("  {:>3}  {}\n", static_cast<int>(code), meaning);
  }
  return text + "  130  a second SIGINT while stopping\n  143  a second SIGTERM while stopping\n";
}

}  // namespace thinwire
