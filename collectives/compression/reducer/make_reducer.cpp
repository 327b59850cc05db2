#include "collectives/compression/reducer/make_reducer.h"

#include <utility>

#include "collectives/base/error.h"
#include "collectives/compression/reducer/by_quantity.h"
#include "collectives/compression/reducer/gradient_average.h"
#include "collectives/compression/reducer/pipelined.h"
#include "collectives/compression/reducer/power_sgd.h"

namespace thinwire {

std::unique_ptr<GradientReducer> make_reducer(const CompressionOptions& options,
                                              const ReducerDevice& device) {
  const CompressionOptions chosen = resolve(options);
  check(chosen.feedback.momentum == 0, "averages of gradients are no reducer's; see Reduction");
  if (std::holds_alternative<PowerSgd>(chosen.codec)) {
    return std::make_unique<PowerSgdReducer>(chosen, device);
  }
  return std::make_unique<PipelinedReducer>(chosen, device);
}

Reduction make_reduction(const CompressionOptions& options, const ReducerDevice& device) {
  CompressionOptions chosen = resolve(options);
  const std::optional<CodecOptions> gradients = std::exchange(chosen.gradient_codec, std::nullopt);
  const double momentum = std::exchange(chosen.feedback.momentum, 0);
  Reduction reduction{make_reducer(chosen, device), nullptr};
  if (gradients) {
    check(momentum == 0, "who exchanges momentum averages no gradients");
    reduction.reducer = std::make_unique<ByQuantityReducer>(
        make_reducer({.codec = *gradients, .policy = chosen.policy}, device),
        std::move(reduction.reducer));
  }
  if (momentum > 0) {
    reduction.before = std::make_unique<GradientAverage>(*reduction.reducer, momentum, device);
  }
  return reduction;
}

}  // namespace thinwire
