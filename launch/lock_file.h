// The file run.lock in an output folder: whose the folder is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "collectives/base/file_descriptor.h"

namespace thinwire {

// Who has a folder, as the lock file in it says.
struct LockOwner {
  std::string host;
  std::string boot;           // id of this boot of the host
  std::string process_table;  // a container has one of its own
  std::int64_t process = 0;
  std::int64_t process_start = 0;  // in ticks since the boot: numbers of processes are used again
  std::string since;               // UTC, for people
  std::string token;               // random: no other run has it
};

// This process, with a new token.
LockOwner this_process();
// When the process of this number, or "self", started; 0 where that is not known.
std::int64_t start_of_process(const std::string& process);
// "process 7 on host 'a', since 2026-11-30 15:20:18 UTC".
std::string describe(const LockOwner& owner);

namespace lock_file {

std::string path_of(const std::string& folder);
// Never waits, whatever stands there, and follows no link; not open, with errno, where it cannot
// be.
FileDescriptor open(const std::string& path, int flags);
// What it holds, as far as a lock file goes; or why it cannot be read, as errno says.
struct Content {
  std::string text;
  int error = 0;
};
Content read(int descriptor);
// None where the text is not that of a whole lock file.
std::optional<LockOwner> parse(const std::string& text);
// A lock file that was not written whole, as a crash may leave it; nobody else's file.
bool is_damaged(const std::string& text);
// 0, or what errno says.
int write(int descriptor, const LockOwner& owner);

}  // namespace lock_file
}  // namespace thinwire
