#include "collectives/base/memory.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "collectives/base/error.h"

namespace thinwire {

std::int64_t memory_of_this_host() {
  std::int64_t bytes = std::int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
  // Of control groups, version 2 and 1; a word, or more than there is, where there is no limit.
  for (const char* const file :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::int64_t limit = 0;
    if (std::ifstream(file) >> limit && limit > 0) bytes = std::min(bytes, limit);
  }
  return bytes;
}

void require_memory(const std::string& what, double bytes) {
  const auto most = static_cast<double>(memory_of_this_host());
  if (bytes <= most) return;
  constexpr double kGigabyte = 1e9;
  throw UsageError(
      fmt::format("{} would take {:.4g} GB of memory, this host has {:.3g}; make it smaller", what,
                  bytes / kGigabyte, most / kGigabyte));
}

}  // namespace thinwire
