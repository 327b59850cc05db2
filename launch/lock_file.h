// The file run.lock in an output folder, which says which run the folder belongs to.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "collectives/base/file_descriptor.h"

namespace thinwire {

// Which run has a folder, as the lock file in it says.
struct LockOwner {
  std::string host;
  std::string boot;           // id of this boot of the host
  std::string process_table;  // a container has one of its own
  std::int64_t process = 0;
  std::int64_t process_start = 0;  // in ticks since the boot, as systems reuse process numbers
  std::string since;               // UTC, for people
  std::string token;               // random, so that no other run has the same
};

// This process, with a new token.
LockOwner this_process();
// When the process of this number, or "self", started; 0 where that is not known.
std::int64_t start_of_process(const std::string& process);
// "process 7 on host 'a', since 2026-11-30 15:20:18 UTC".
std::string describe(const LockOwner& owner);

namespace lock_file {

std::string path_of(const std::string& folder);
// Opens the lock file. Never waits, whatever kind of file is there, and follows no link. What it
// returns is not open where that fails; errno says why.
FileDescriptor open(const std::string& path, int flags);
// The text of a lock file, read no further than a whole one is long; or the errno that says why it
// cannot be read.
struct Content {
  std::string text;
  int error = 0;
};
Content read(int descriptor);
// None where the text is not that of a whole lock file.
std::optional<LockOwner> parse(const std::string& text);
// Whether the text is that of a lock file that was not written whole, as a crash may leave it, and
// not the text of somebody else's file.
bool is_damaged(const std::string& text);
// 0, or what errno says.
int write(int descriptor, const LockOwner& owner);

}  // namespace lock_file
}  // namespace thinwire
