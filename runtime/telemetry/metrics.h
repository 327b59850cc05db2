// The run's numbers, for scripts.
#pragma once

#include <fstream>
#include <string>

#include "runtime/trainer/trainer.h"

namespace thinwire {

// One JSON object per line: each reported step with step, loss, lr, samples_per_second,
// bytes_dense, bytes_wire, residual_ratio, skipped, epoch, slowest_rank, slowest_ratio, steps
// (since the line before), compressed_steps (of them), step_seconds, arithmetic_seconds,
// waited_seconds; a last one with "event": "end". Bytes and seconds are per rank and step. Values
// that JSON cannot say (NaN) are null.
//
// A run that resumes keeps the lines of the steps before, and drops those that it will report
// again.
//
// A file that cannot be written to costs a warning, once, and the numbers; never the run.
class MetricsFile {
 public:
  // `resumed_at`: the step that the run goes on from; 0 starts an empty file.
  MetricsFile(const std::string& path, std::int64_t resumed_at);

  void write(const StepReport& report);
  void write(const EndReport& report);
  // Empty, or why numbers are missing; becomes empty once it was read.
  std::string take_warning();

 private:
  void line(const std::string& text);
  void fail();

  std::string path_;
  std::ofstream file_;
  std::string warning_;
  bool failed_ = false;
};

}  // namespace thinwire
