#include "runtime/rank_generator.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include "collectives/base/hash.h"

namespace thinwire {

at::Generator rank_generator(std::uint64_t seed, int rank) {
  return at::detail::createCPUGenerator(hash64(fmt::format("generator of rank {}", rank), seed));
}

}  // namespace thinwire
