// The launches behind `cuda_kernels`, which return CUDA's error code: a .cu file is C++17 and knows
// none of our exceptions.
#pragma once

#include "collectives/compression/kernels/kernels.h"

namespace thinwire::launch {

template <typename T>
int average(const AverageArgs<T>& args, StreamHandle stream);
template <typename T>
int encode(const EncodeArgs<T>& args, StreamHandle stream);
template <typename T>
int owner_reduce(const OwnerReduceArgs<T>& args, StreamHandle stream);
template <typename T>
int form_error(const FormErrorArgs<T>& args, StreamHandle stream);
template <typename T>
int first_non_finite(const FirstNonFiniteArgs<T>& args, StreamHandle stream);
template <typename T>
int decode(const DecodeArgs<T>& args, StreamHandle stream);
template <typename T>
int integrate(const DecodeArgs<T>& args, StreamHandle stream);
template <typename T>
int mean_and_check(const MeanAndCheckArgs<T>& args, StreamHandle stream);

// Throws `Error` unless `code` is cudaSuccess.
void check_launched(int code);

// A launch as a table has it.
template <auto Launch, typename Args>
void checked(const Args& args, const Executor& on) {
  check_launched(Launch(args, on.stream));
}

}  // namespace thinwire::launch
