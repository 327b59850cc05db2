// PowerSGD's kernels on a GPU: held to their host instances, and timed.
#pragma once

#include "tests/compression/kernel_cases.h"

namespace thinwire::on_gpu {

// Random matrices of a bucket through every kernel on host and GPU; throws where bits differ.
template <typename T>
void compare_low_rank(kernel_cases::Dice& dice);

// Of the matrices of BERT-large, 335 million values, at rank 4.
void print_low_rank_times();

extern template void compare_low_rank<float>(kernel_cases::Dice&);
extern template void compare_low_rank<double>(kernel_cases::Dice&);

}  // namespace thinwire::on_gpu
