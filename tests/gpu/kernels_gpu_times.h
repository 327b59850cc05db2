// How fast the kernels are on a GPU.
#pragma once

#include <cstdint>

namespace thinwire::on_gpu {

// Prints the milliseconds of every kernel over `numel` floats, and the bytes per second that must
// pass through memory for it.
void print_times(std::int64_t numel);

}  // namespace thinwire::on_gpu
