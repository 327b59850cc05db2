// The run's numbers, for scripts.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/report/report.h"
#include "runtime/telemetry/appended_file.h"

namespace thinwire {

// One JSON object per line: each reported step with step, loss, lr, samples_per_second,
// bytes_dense, bytes_wire, residual_ratio, skipped, epoch, slowest_rank, slowest_ratio, steps
// (since the line before), compressed_steps (of them), step_seconds, arithmetic_seconds,
// waited_seconds; a last one with "event": "end". Bytes and seconds are per rank and step. Values
// that JSON cannot say (NaN) are null.
//
// A run that resumes keeps the lines of the steps before, and drops those that it will report
// again. Where it has nothing left to report, the file stays as it is.
//
// A file that cannot be written to costs a warning and the numbers of that time, never the run.
class MetricsFile {
 public:
  // `resumed_at`: the step that the run goes on from; 0 starts an empty file. Nothing is written
  // into a file that was there, which may have another name: it gives up its place.
  MetricsFile(
      const std::string& path, std::int64_t resumed_at, std::function<void()> before_anew = [] {});

  void write(const StepReport& report);
  void write(const EndReport& report);
  // Empty, or what happened to the file; becomes empty once it was read.
  std::string take_warning() { return file_.take_warning(); }

 private:
  void line(const std::string& text);
  // No longer as it was before this run, but for the lines of the steps before.
  void begin();

  std::string path_;
  std::int64_t resumed_at_;
  bool is_whole_;  // the file ends with the end of a run, of the step that this one resumed at

  AppendedFile file_;
};

// Whether the file at `path` is one and holds nothing but what a `MetricsFile` writes. A last line
// may be cut off.
bool holds_only_metrics(const std::string& path);

}  // namespace thinwire
