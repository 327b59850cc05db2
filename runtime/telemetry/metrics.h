// The run's numbers, for scripts.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/report/report.h"
#include "runtime/telemetry/appended_file.h"

namespace thinwire {

// One JSON object per line. Each reported step has step, loss, lr, samples_per_second, bytes_dense,
// bytes_wire, residual_ratio, skipped, epoch, slowest_rank, slowest_ratio, steps (since the line
// before), compressed_steps (among these), step_seconds, arithmetic_seconds, waited_seconds and
// clip_scale. The last line has "event": "end". Bytes and seconds are per rank and step. Values
// that JSON cannot express (NaN) are null.
//
// A run that resumes keeps the lines of the steps before, and drops those that it will report
// again. Where it has nothing left to report, the file stays as it is.
//
// While the file cannot be written its numbers are lost, with a warning; the run goes on.
class MetricsFile {
 public:
  // `resumed_at`: the step that the run goes on from; 0 starts an empty file. A file that is there
  // is replaced and not written to, because it may have another name.
  MetricsFile(
      const std::string& path, std::int64_t resumed_at, std::function<void()> before_anew = [] {});

  void write(const StepReport& report);
  void write(const EndReport& report);
  // The warning for what happened to the file, or empty. It becomes empty once it was read.
  std::string take_warning() { return file_.take_warning(); }

 private:
  void line(const std::string& text);
  // Replaces the file by the lines that this run keeps.
  void begin();

  std::string path_;
  std::int64_t resumed_at_;
  bool is_whole_;  // the file already ends with the "end" line of the step resumed at

  AppendedFile file_;
};

// Whether `path` is a plain file with nothing but lines that a `MetricsFile` writes. The last line
// may be cut off.
bool holds_only_metrics(const std::string& path);

}  // namespace thinwire
