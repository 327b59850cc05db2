#include "runtime/trainer/precision.h"

#include <ATen/autocast_mode.h>

#include "collectives/base/choice_reader.h"

namespace thinwire {

Precision parse_precision(const std::string& text) {
  ChoiceReader spec("--precision", text);
  spec.done();
  if (spec.name() == "fp32") return Precision::fp32;
  if (spec.name() == "bf16") return Precision::bf16;
  spec.unknown_name({"fp32", "bf16"});
}

ComputeIn::ComputeIn(Precision precision, at::DeviceType device)
    : device_(device),
      enabled_before_(at::autocast::is_autocast_enabled(device)),
      dtype_before_(at::autocast::get_autocast_dtype(device)) {
  at::autocast::increment_nesting();
  at::autocast::set_autocast_enabled(device, precision == Precision::bf16);
  if (precision == Precision::bf16) at::autocast::set_autocast_dtype(device, at::kBFloat16);
}

ComputeIn::~ComputeIn() {
  // Casts of weights are kept while a scope lasts; the next step's weights are others.
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_dtype(device_, dtype_before_);
  at::autocast::set_autocast_enabled(device_, enabled_before_);
}

}  // namespace thinwire
