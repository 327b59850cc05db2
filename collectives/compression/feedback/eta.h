// EControl's weight of the error in the message.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "collectives/compression/codec/codec.h"

namespace thinwire {

// The weight that stays the same over a run: the given one, else half of the codec's contraction
// where that is known beforehand (training is stable up to twice it). None: it is measured.
inline std::optional<double> fixed_eta(std::optional<double> given, const Codec* codec) {
  if (given) return given;
  if (!codec || !codec->contraction()) return std::nullopt;
  return *codec->contraction() / 2;
}

// A slice's measured weight after one more committed message m that decoded to d, from the sums of
// m^2 and (m - d)^2 over the slice: a tenth of the contraction delta = 1 - |m - d|^2 / |m|^2, in
// [0, 1], smoothed over ten messages. 0 is the weight before the first message. A message of zeros,
// or one whose square overflows, says nothing.
template <typename T>
T next_eta(T eta, T message_energy, T error_energy) {
  if (!(message_energy > 0) || !std::isfinite(message_energy) || !std::isfinite(error_energy)) {
    return eta;
  }
  const T delta = std::clamp(1 - error_energy / message_energy, T{0}, T{1});
  const T target = static_cast<T>(0.1) * delta;
  if (eta == 0) return target;
  return static_cast<T>(0.9) * eta + static_cast<T>(0.1) * target;
}

}  // namespace thinwire
