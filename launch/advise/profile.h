// What training costs on this rank without a network.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "collectives/base/team.h"
#include "collectives/communicator.h"
#include "collectives/compression/kernels/kernels.h"
#include "launch/advise/timeline.h"
#include "runtime/data/dataset.h"
#include "runtime/model/model.h"
#include "runtime/trainer/options.h"

namespace thinwire {

// Steps of the real trainer whose communicator moves no bytes.
struct Profile {
  struct Step {
    Timeline timeline;
    double seconds = 0;
    double arithmetic_seconds = 0;  // in the reducer
    double wire_bytes = 0;          // that this rank would send
  };
  std::vector<Step> steps;
};

// Collective over `ranks`: it makes all ranks start together, because they may share cores, and
// nothing else goes over it. `team` and `kernels`: of codecs and update; null: one thread. Takes
// `steps` steps of `options`, after three to warm up. The model's weights change.
Profile measure_profile(Communicator& ranks, const Model& model, const DataSplit& data,
                        const TrainOptions& options, std::int64_t steps,
                        const std::shared_ptr<Team>& team = nullptr,
                        const Kernels<float>& kernels = host_kernels<float>());

}  // namespace thinwire
