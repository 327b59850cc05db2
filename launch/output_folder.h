// Where a run's results go.
#pragma once

#include <string>

#include "runtime/trainer/options.h"
#include "runtime/trainer/resume.h"

namespace thinwire {

// Throws `Error` (exit 73).
void make_output_folder(const std::string& folder);

// What the output folder holds of this run's history.
struct OutputHistory {
  std::string moved;       // what to tell the user; empty if nothing was moved
  bool continued = false;  // the metrics that are there belong to this run
};

// Moves what does not belong to the history of this run into "earlier-N" in the output folder, so
// that nothing is deleted or mixed up; to be called once the run has loaded what it resumes from. A
// run that starts anew shares no history with what is there, also where it looked for a checkpoint
// and found none; one that resumes from "auto" shares all but the strangers; one that resumes from
// a checkpoint shares what is up to that one if it is among them, else nothing. Metrics that hold
// something else are kept there whole. Throws `Error` (exit 73).
OutputHistory set_aside_earlier_runs(const TrainOptions& options, const Resumption& resumption);

}  // namespace thinwire
