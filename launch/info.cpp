#include "launch/info.h"

#include <fmt/format.h>
#include <torch/version.h>

#include "launch/backends.h"
#include "launch/version.h"

namespace thinwire {

std::string info_text() {
  return fmt::format(
      "thinwire  {}\n"
      "compiler  {}, {}\n"
      "libtorch  {}\n"
      "MPI       {}\n"
      "CUDA      {}\n"
      "NCCL      {}\n",
      kVersion, kCompiler, kBuildType, TORCH_VERSION, kMpi, kCuda, kNccl);
}

}  // namespace thinwire
