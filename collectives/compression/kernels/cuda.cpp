#include "collectives/compression/kernels/device_number.h"
#include "collectives/compression/kernels/launch.h"
#include "collectives/compression/kernels/low_rank_launch.h"
#include "collectives/compression/kernels/permute_launch.h"

namespace thinwire {

template <typename T>
Kernels<T> cuda_kernels() {
  return {launch::checked<launch::average<T>, AverageArgs<T>>,
          launch::checked<launch::encode<T>, EncodeArgs<T>>,
          launch::checked<launch::owner_reduce<T>, OwnerReduceArgs<T>>,
          launch::checked<launch::form_error<T>, FormErrorArgs<T>>,
          launch::checked<launch::first_non_finite<T>, FirstNonFiniteArgs<T>>,
          launch::checked<launch::decode<T>, DecodeArgs<T>>,
          launch::checked<launch::integrate<T>, DecodeArgs<T>>,
          launch::checked<launch::mean_and_check<T>, MeanAndCheckArgs<T>>};
}

template <typename T>
LowRankKernels<T> cuda_low_rank_kernels() {
  return {launch::checked<launch::orthonormal_left<T>, OrthonormalArgs<T>>,
          launch::checked<launch::orthonormal_right<T>, OrthonormalArgs<T>>,
          launch::checked<launch::project_left<T>, ProjectLeftArgs<T>>,
          launch::checked<launch::project_right<T>, ProjectRightArgs<T>>,
          launch::checked<launch::multiply<T>, LowRankProductArgs<T>>,
          launch::checked<launch::subtract<T>, LowRankProductArgs<T>>};
}

template <typename T>
PermuteKernels<T> cuda_permute_kernels() {
  return {launch::checked<launch::apply_order<T>, PermuteArgs<T>>,
          launch::checked<launch::revert_order<T>, PermuteArgs<T>>};
}

template Kernels<DeviceNumber> cuda_kernels<DeviceNumber>();
template LowRankKernels<DeviceNumber> cuda_low_rank_kernels<DeviceNumber>();
template PermuteKernels<DeviceNumber> cuda_permute_kernels<DeviceNumber>();

}  // namespace thinwire
