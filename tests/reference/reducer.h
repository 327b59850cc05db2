// What reducers are held to.
#pragma once

#include <memory>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"

namespace thinwire::reference {

// The reducer of these options in plain code, part by part. Host memory only.
std::unique_ptr<GradientReducer> make_reducer(const CompressionOptions& options);

}  // namespace thinwire::reference
