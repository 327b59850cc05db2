#include "collectives/compression/kernels/device-inl.h"

namespace thinwire::launch {

template int average(const AverageArgs<float>&, StreamHandle);
template int encode(const EncodeArgs<float>&, StreamHandle);
template int owner_reduce(const OwnerReduceArgs<float>&, StreamHandle);
template int form_error(const FormErrorArgs<float>&, StreamHandle);
template int first_non_finite(const FirstNonFiniteArgs<float>&, StreamHandle);
template int decode(const DecodeArgs<float>&, StreamHandle);
template int integrate(const DecodeArgs<float>&, StreamHandle);
template int mean_and_check(const MeanAndCheckArgs<float>&, StreamHandle);

}  // namespace thinwire::launch
