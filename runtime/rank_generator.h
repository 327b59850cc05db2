// Random numbers of a rank's own.
#pragma once

#include <ATen/core/Generator.h>

#include <cstdint>

namespace thinwire {

// A generator on the CPU that belongs to one rank: another one for each rank, the same in every
// run.
//
//   at::Generator mine = rank_generator(seed, ranks->rank());
//   at::Tensor noise = torch::randn({8}, mine);
//
// Where ranks are threads, torch::manual_seed and everything that draws without a generator share
// one generator of the process, so that what a rank draws depends on which thread came first.
at::Generator rank_generator(std::uint64_t seed, int rank);

}  // namespace thinwire
