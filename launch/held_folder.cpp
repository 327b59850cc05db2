#include "launch/held_folder.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "launch/output_folder.h"

namespace thinwire {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A rank's machine may show for a while what it has read before.
constexpr seconds kUntilSeen{10};

// Whether a rank sees in the folder what rank 0 wrote: "seen", "not seen", or why it cannot read
// it.
std::string look_for(const std::string& folder, const std::string& token, Clock::time_point until) {
  while (true) {
    const FileDescriptor file = lock_file::open(lock_file::path_of(folder), O_RDONLY);
    const lock_file::Content content =
        file.open() ? lock_file::read(file.get()) : lock_file::Content{.text = "", .error = errno};
    const auto owner = lock_file::parse(content.text);
    if (owner && owner->token == token) return "seen";
    if (Clock::now() > until) {
      const int error = content.error;
      return error == 0 || error == ENOENT || error == ENOTDIR
                 ? "not seen"
                 : std::generic_category().message(error);
    }
    std::this_thread::sleep_for(milliseconds(200));
    // A network file system remembers that a name was not there until it looks at the folder.
    std::error_code error;
    const std::filesystem::directory_iterator look(folder, error);
  }
}

// Collective.
void require_seen_everywhere(Communicator& communicator, const std::string& folder,
                             const std::string& token) {
  const auto patience = std::min<milliseconds>(kUntilSeen, communicator.timeout() / 2);
  std::map<std::string, std::vector<int>> ranks;  // by their answer
  const std::vector<std::string> answers =
      all_gather_text(communicator, look_for(folder, token, Clock::now() + patience));
  for (std::size_t rank = 0; rank < answers.size(); ++rank) {
    ranks[answers[rank]].push_back(static_cast<int>(rank));
  }
  ranks.erase("seen");
  if (ranks.empty()) return;
  if (const auto blind = ranks.find("not seen"); blind != ranks.end()) {
    throw AgreedError(
        ExitCode::cannot_write,
        fmt::format("{} {} not see in '{}' what rank 0 wrote there; give a folder "
                    "that all machines share with --output",
                    rank_list(blind->second), blind->second.size() == 1 ? "does" : "do", folder));
  }
  const auto& [why, unable] = *ranks.begin();
  throw AgreedError(
      ExitCode::cannot_write,
      fmt::format(
          "{} cannot read '{}', which rank 0 has written and locked: {}; check who may read "
          "it (on SMB, where locks keep others from reading, mount with nobrl), or give "
          "another folder with --output",
          rank_list(unable), lock_file::path_of(folder), why));
}

}  // namespace

bool belongs_to_another(const std::string& folder, const std::string& token) {
  const FileDescriptor file = lock_file::open(lock_file::path_of(folder), O_RDONLY);
  const auto owner =
      file.open() ? lock_file::parse(lock_file::read(file.get()).text) : std::nullopt;
  return owner && owner->token != token;
}

HeldFolder take_run_lock(Communicator& communicator, const std::string& folder, RunLockParts parts,
                         const LockWait& wait) {
  HeldFolder held;
  std::string said;
  const auto pause = std::min<milliseconds>(seconds(1), communicator.timeout() / 4);
  // The others hear from rank 0 each second, however long it waits.
  while (true) {
    held.token = rank_zero_says(communicator, [&]() -> std::string {
      if (!held.lock) {
        make_output_folder(folder);
        held.lock = std::make_unique<RunLock>(folder, std::move(parts));
      }
      if (held.lock->try_to_take()) return held.lock->token();
      if (held.lock->waiting() != std::exchange(said, held.lock->waiting())) wait.say(said);
      std::this_thread::sleep_for(pause);
      return {};
    });
    if (!held.token.empty()) break;
    if (all_reduce_max(communicator, {wait.stop_requested() ? 1 : 0}).front() != 0) {
      throw AgreedError(ExitCode::stopped_with_checkpoint,
                        fmt::format("stopped on request, waiting for '{}': {}; the same command "
                                    "starts it again",
                                    folder, wait.have));
    }
  }
  require_seen_everywhere(communicator, folder, held.token);
  return held;
}

}  // namespace thinwire
