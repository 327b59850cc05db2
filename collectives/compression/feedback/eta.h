// How EControl's weight of the error follows the codec.
#pragma once

#include <algorithm>

namespace thinwire {

// A tenth of the measured contraction delta = 1 - |m - C(m)|^2 / |m|^2, smoothed over steps; `eta`
// is the value before, 0 at the start.
inline double learnt_eta(double eta, double message_energy, double error_energy) {
  if (!(message_energy > 0)) return eta;
  const double delta = std::clamp(1 - error_energy / message_energy, 0.0, 1.0);
  return eta == 0 ? 0.1 * delta : 0.9 * eta + 0.1 * (0.1 * delta);
}

}  // namespace thinwire
