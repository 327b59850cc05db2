#include "tests/reference/reducer.h"

#include "collectives/base/error.h"
#include "collectives/compression/codec/codec.h"
#include "tests/reference/composed.h"
#include "tests/reference/power_sgd.h"

namespace thinwire::reference {

std::unique_ptr<GradientReducer> make_reducer(const CompressionOptions& options) {
  const CompressionOptions chosen = resolve(options);
  check(chosen.feedback.momentum == 0, "averages of gradients are no reducer's; see Reduction");
  if (std::holds_alternative<PowerSgd>(chosen.codec)) {
    return std::make_unique<PowerSgdByTensors>(chosen);
  }
  return std::make_unique<ComposedReducer>(chosen);
}

}  // namespace thinwire::reference
