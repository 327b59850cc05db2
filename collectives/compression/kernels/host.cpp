// The kernels on the host, compiled once per kind of vectors; the machine's best are found when the
// program runs.
#include "collectives/compression/kernels/host.h"

#include "collectives/compression/kernels/kernels.h"

// Enough of them: newer ones would add nothing to these loops.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "collectives/compression/kernels/host.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After them, as they are included once per target.
#include "collectives/compression/kernels/bodies-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::HWY_NAMESPACE {

// A kernel's body for every block of the table, one after another: a block stays in the cache.
template <typename Args, typename Body>
void each_block(const Args& args, Body body) {
  for (std::int64_t b = 0; b < args.block_count; ++b) {
    if (args.blocks[b].count > 0) body(args.blocks[b], b);
  }
}

template <typename T>
void run_average(const AverageArgs<T>& args, StreamHandle) {
  each_block(args, [&](const Block& block, std::int64_t) { average(args, block); });
}
template <typename T>
void run_encode(const EncodeArgs<T>& args, StreamHandle) {
  Scratch scratch;
  each_block(args, [&](const Block& block, std::int64_t b) { encode(args, block, b, scratch); });
}
template <typename T>
void run_owner_reduce(const OwnerReduceArgs<T>& args, StreamHandle) {
  Scratch scratch;
  each_block(args,
             [&](const Block& block, std::int64_t b) { owner_reduce(args, block, b, scratch); });
}
template <typename T>
void run_form_error(const FormErrorArgs<T>& args, StreamHandle) {
  each_block(args, [&](const Block& block, std::int64_t b) { form_error(args, block, b); });
}
template <typename T>
void run_first_non_finite(const FirstNonFiniteArgs<T>& args, StreamHandle) {
  each_block(args, [&](const Block& block, std::int64_t) { first_non_finite(args, block); });
}
template <typename T>
void run_decode(const DecodeArgs<T>& args, StreamHandle) {
  each_block(args, [&](const Block& block, std::int64_t) { decode(args, block); });
}
template <typename T>
void run_integrate(const DecodeArgs<T>& args, StreamHandle) {
  each_block(args, [&](const Block& block, std::int64_t) { integrate(args, block); });
}
template <typename T>
void run_mean_and_check(const MeanAndCheckArgs<T>& args, StreamHandle) {
  each_block(args, [&](const Block& block, std::int64_t) { mean_and_check(args, block); });
}

template <typename T>
Kernels<T> kernels() {
  return {run_average<T>,          run_encode<T>, run_owner_reduce<T>, run_form_error<T>,
          run_first_non_finite<T>, run_decode<T>, run_integrate<T>,    run_mean_and_check<T>};
}

}  // namespace thinwire::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {

template <typename T>
std::vector<NamedKernels<T>> host_kernels_by_target() {
  const std::int64_t here = hwy::SupportedTargets();
  std::vector<NamedKernels<T>> found;
#if HWY_TARGETS & HWY_AVX3
  if ((here & HWY_AVX3) != 0) found.push_back({"AVX-512", N_AVX3::kernels<T>()});
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((here & HWY_AVX2) != 0) found.push_back({"AVX2", N_AVX2::kernels<T>()});
#endif
#if HWY_STATIC_TARGET != HWY_AVX3 && HWY_STATIC_TARGET != HWY_AVX2
  found.push_back({hwy::TargetName(HWY_STATIC_TARGET), HWY_STATIC_DISPATCH(kernels<T>)()});
#endif
  return found;
}

template <typename T>
Kernels<T> host_kernels() {
  return host_kernels_by_target<T>().front().kernels;
}

template std::vector<NamedKernels<float>> host_kernels_by_target<float>();
template std::vector<NamedKernels<double>> host_kernels_by_target<double>();
template Kernels<float> host_kernels<float>();
template Kernels<double> host_kernels<double>();

}  // namespace thinwire
#endif
