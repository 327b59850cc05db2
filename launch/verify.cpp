// `thinwire verify`.
#include <fmt/format.h>

#include "launch/commands.h"
#include "launch/output.h"
#include "runtime/checkpoint/checkpoint.h"

namespace thinwire {

int run_verify(const std::string& folder) {
  PosixFileSystem files;
  const Manifest manifest = verify_checkpoint(files, folder);
  std::int64_t bytes = 0;
  for (const auto& file : manifest.files) bytes += file.size;
  print(fmt::format("{} is whole: step {}, {} ranks, {} files, {} bytes\n", folder, manifest.step,
                    manifest.world_size, manifest.files.size(), bytes));
  return 0;
}

}  // namespace thinwire
