// Where a run's results go.
#pragma once

#include <string>

#include "runtime/trainer/options.h"
#include "runtime/trainer/resume.h"

namespace thinwire {

// Makes the folder and its parents. Throws `Error` (exit 73).
void make_output_folder(const std::string& folder);

// What the output folder holds of this run's history.
struct OutputHistory {
  std::string moved;       // what to tell the user; empty if nothing was moved
  bool continued = false;  // the metrics that are there belong to this run
};

// Moves what does not belong to the history of this run into "earlier-N" in the output folder, so
// that nothing is deleted or mixed up. To be called once the run has loaded what it resumes from.
// What belongs to its history:
//   * of a run that starts anew, nothing, also where it looked for a checkpoint and found none;
//   * of a run that resumes from "auto", everything but the strangers;
//   * of a run that resumes from a checkpoint in this folder, everything up to that checkpoint;
//   * of a run that resumes from a checkpoint elsewhere, nothing.
// A metrics file with lines that are no metrics is copied there as a whole.
// Throws `Error` (exit 73).
OutputHistory set_aside_earlier_runs(const TrainOptions& options, const Resumption& resumption);

}  // namespace thinwire
