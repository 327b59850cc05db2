#include "collectives/compression/kernels/device-inl.h"

namespace thinwire::launch {

template int average(const AverageArgs<double>&, StreamHandle);
template int encode(const EncodeArgs<double>&, StreamHandle);
template int owner_reduce(const OwnerReduceArgs<double>&, StreamHandle);
template int form_error(const FormErrorArgs<double>&, StreamHandle);
template int first_non_finite(const FirstNonFiniteArgs<double>&, StreamHandle);
template int decode(const DecodeArgs<double>&, StreamHandle);
template int integrate(const DecodeArgs<double>&, StreamHandle);
template int mean_and_check(const MeanAndCheckArgs<double>&, StreamHandle);

}  // namespace thinwire::launch
