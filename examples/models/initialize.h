// Initial weights.
#pragma once

#include <cstdint>

#include "runtime/model/model.h"

namespace thinwire {

// Fills the parameters with torch's default distributions: a weight with two or more dimensions,
// and the bias beside it, uniform in +-1/sqrt(fan_in); a norm's weight one and bias zero. Buffers
// (running statistics) are left alone.
//
// A Gpt gets GPT-2's instead: matrices normal with standard deviation .02, those that end a
// residual branch .02 / sqrt(2 layers), biases zero.
//
// A value depends on `seed`, the parameter's full name and its place in the parameter only: not on
// libtorch's generator, on the other parameters, or on the thread. Throws Bug for a one-dimensional
// parameter that is neither "weight" nor "bias".
void initialize_parameters(torch::nn::Module& module, std::uint64_t seed);

}  // namespace thinwire
