// The loops on the host, compiled once per kind of vectors; the machine's best are found when the
// program runs.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optimizers/kernels/host.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "collectives/base/team.h"
#include "optimizers/kernels/bodies.h"
#include "optimizers/kernels/host.h"
#include "optimizers/kernels/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::HWY_NAMESPACE {

// What a thread takes at least: some ten microseconds' work.
constexpr std::int64_t least_elements = 1 << 15;
constexpr std::int64_t least_blocks = 16;

// In one piece with the rule's functions, which were not compiled for these vectors.
template <typename Rule, typename T, typename... State>
__attribute__((flatten)) void step_slice(const typename Rule::Step& step, const StepSlice& slice,
                                         const T* gradient, T* weights, State*... state) {
  const auto numbers = Rule::template numbers<T>(step, slice);
  for (std::int64_t i = 0; i < slice.numel; ++i) {
    Rule::move(numbers, gradient[i], weights[i], state[i]...);
  }
}

template <typename Rule, typename T, int... k>
void step_slices(const BucketView<T>& bucket, const typename Rule::Step& step, Team* team,
                 std::integer_sequence<int, k...>) {
  for (std::int64_t s = 0; s < bucket.slice_count; ++s) {
    share_out(
        team, bucket.slices[s].numel, least_elements, [&](std::int64_t begin, std::int64_t end) {
          StepSlice slice = bucket.slices[s];
          slice.offset += begin;
          slice.numel = end - begin;
          step_slice<Rule>(step, slice, bucket.gradient + slice.offset,
                           bucket.weights + slice.offset, (bucket.state[k] + slice.offset)...);
        });
  }
}

template <typename Rule, typename T>
void step(const BucketView<T>& bucket, const typename Rule::Step& step, const Executor& on) {
  with_states<Rule>(bucket.state_count,
                    [&](auto states) { step_slices<Rule>(bucket, step, on.team, states); });
}

// In one piece with what they call, which was not compiled for these vectors.
template <typename T>
__attribute__((flatten)) void squared_sums(const SquaredNormArgs<T>& args, std::int64_t begin,
                                           std::int64_t end) {
  for (std::int64_t b = begin; b < end; ++b) {
    const NormBlock& block = args.blocks[b];
    args.block_sums[b] = bodies::squared_sum<HostWarp>(args.values + block.begin, block.count);
  }
}
template <typename T>
__attribute__((flatten)) void sum_of_sums(const SquaredNormArgs<T>& args) {
  *args.result = bodies::sum_of_blocks<HostWarp>(args.block_sums, args.block_count);
}

template <typename T>
void squared_norm(const SquaredNormArgs<T>& args, const Executor& on) {
  share_out(on.team, args.block_count, least_blocks,
            [&](std::int64_t begin, std::int64_t end) { squared_sums(args, begin, end); });
  sum_of_sums(args);
}

template <typename T, typename... Rules>
OptimizerKernels<T> kernels_of(RuleList<Rules...>) {
  return {{step<Rules, T>...}, squared_norm<T>};
}

template <typename T>
OptimizerKernels<T> optimizer_kernels() {
  return kernels_of<T>(KernelRules{});
}

}  // namespace thinwire::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {

template <typename T>
std::vector<NamedOptimizerKernels<T>> host_optimizer_kernels_by_target() {
  const std::int64_t here = hwy::SupportedTargets();
  std::vector<NamedOptimizerKernels<T>> found;
#if HWY_TARGETS & HWY_AVX3
  if ((here & HWY_AVX3) != 0) found.push_back({"AVX-512", N_AVX3::optimizer_kernels<T>()});
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((here & HWY_AVX2) != 0) found.push_back({"AVX2", N_AVX2::optimizer_kernels<T>()});
#endif
#if HWY_STATIC_TARGET != HWY_AVX3 && HWY_STATIC_TARGET != HWY_AVX2
  found.push_back(
      {hwy::TargetName(HWY_STATIC_TARGET), HWY_STATIC_DISPATCH(optimizer_kernels<T>)()});
#endif
  return found;
}

template <typename T>
OptimizerKernels<T> host_optimizer_kernels() {
  return host_optimizer_kernels_by_target<T>().front().kernels;
}

template std::vector<NamedOptimizerKernels<float>> host_optimizer_kernels_by_target<float>();
template std::vector<NamedOptimizerKernels<double>> host_optimizer_kernels_by_target<double>();
template OptimizerKernels<float> host_optimizer_kernels<float>();
template OptimizerKernels<double> host_optimizer_kernels<double>();

}  // namespace thinwire
#endif
