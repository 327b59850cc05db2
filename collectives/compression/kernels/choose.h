// Which form of each of the host's kernels is the fastest on this machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/compression/kernels/kernels.h"

namespace thinwire {

// What a kernel takes in one form, in 1-bit blocks of 1,024 values.
struct FormTime {
  std::string form;
  double nanoseconds = 0;  // per element, the median of some runs
};

struct KernelChoice {
  std::string kernel;  // "encode", "owner's reduction" or "decode"
  std::string form;    // of `times`
  std::vector<FormTime> times;
};

// Kernels of which each has the form that was chosen. Results do not depend on it.
struct ChosenKernels {
  Kernels<float> kernels;
  std::vector<KernelChoice> choices;  // empty: nothing was measured
};

// Times every form of this machine's best vectors, one after the other in several rounds, over
// `bytes` of memory, which should be more than the last cache. Where a form is not faster than the
// first by a thirtieth, the first is chosen.
ChosenKernels choose_host_kernels(std::int64_t bytes = std::int64_t{64} << 20);

// The form of this name for every kernel. Throws `UsageError` where this machine has none.
ChosenKernels host_kernels_of_form(const std::string& form);

}  // namespace thinwire
