// The type of values for which a file with kernels of a GPU is compiled: float in
// thinwire::cuda_kernels, double in the library of the tests. One takes minutes.
#pragma once

namespace thinwire {

using DeviceNumber = THINWIRE_DEVICE_NUMBER;

}  // namespace thinwire
