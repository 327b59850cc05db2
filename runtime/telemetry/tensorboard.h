// The run's numbers, for TensorBoard.
#pragma once

#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

#include "runtime/trainer/trainer.h"

namespace thinwire {

// One number under the name that its chart gets.
struct Scalar {
  std::string_view tag;
  double value = 0;  // written as float32
};

// The bytes of one event: a protocol buffer `Event` of TensorFlow's event.proto. `wall_time`:
// seconds since 1970.
std::string scalar_event(double wall_time, std::int64_t step, std::span<const Scalar> scalars);
// That a run starts, or starts again, at `step`: of events before it in the folder, TensorBoard
// forgets those of this step and later ones.
std::string start_event(double wall_time, std::int64_t step);
// What a file begins with.
std::string version_event(double wall_time);

// A record of TensorFlow's TFRecord format: length, its checksum, `data`, its checksum; masked
// CRC-32C both.
std::string record(std::string_view data);

// A file events.out.tfevents.* in a folder of a run. Each reported step has the numbers of the
// run's MetricsFile under the same names; each evaluation has test_accuracy and test_loss.
//
// A run that resumes writes a file of its own, as TensorBoard expects, which takes the place of the
// steps that it will report again.
//
// A file that cannot be written to costs a warning, once, and the charts; never the run.
class TensorBoardFile {
 public:
  // `resumed_at`: the step that the run goes on from; 0 where it starts anew.
  TensorBoardFile(const std::string& folder, std::int64_t resumed_at);

  void write(const StepReport& report);
  void write(std::int64_t step, const Evaluation& evaluation);
  // Empty, or why charts are missing; becomes empty once it was read.
  std::string take_warning();

 private:
  void append(const std::string& event);
  void fail();

  std::string path_;
  std::ofstream file_;
  std::string warning_;
  bool failed_ = false;
};

}  // namespace thinwire
