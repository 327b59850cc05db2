// The run's numbers, for scripts.
#pragma once

#include <fstream>
#include <string>

#include "runtime/trainer/trainer.h"

namespace thinwire {

// Whether a metrics file starts empty or goes on.
enum class MetricsStart { anew, append };

// One JSON object per line: each reported step with step, loss, lr, samples_per_second,
// bytes_dense, bytes_wire, residual_ratio, skipped, epoch; a last one with "event": "end". Bytes
// are per rank and step. Values that JSON cannot say (NaN) are null.
//
// A file that cannot be written to costs a warning, once, and the numbers; never the run.
class MetricsFile {
 public:
  MetricsFile(const std::string& path, MetricsStart start);

  void write(const StepReport& report);
  void write(const EndReport& report);
  // Empty, or why numbers are missing; becomes empty once it was read.
  std::string take_warning();

 private:
  void line(const std::string& text);

  std::string path_;
  std::ios::openmode mode_;
  std::ofstream file_;  // opened by the first line
  std::string warning_;
  bool failed_ = false;
};

}  // namespace thinwire
