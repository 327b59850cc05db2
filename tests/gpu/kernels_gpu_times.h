// How fast the kernels are on a GPU.
#pragma once

#include <cstdint>
#include <functional>

namespace thinwire::on_gpu {

// Prints the median of eleven launches; `bytes` are those that must pass through memory, 0:
// unknown.
void report(const char* name, double bytes, const std::function<void()>& launch);

// Prints the milliseconds of every kernel over `numel` floats, and the bytes per second that must
// pass through memory for it.
void print_times(std::int64_t numel);

}  // namespace thinwire::on_gpu
