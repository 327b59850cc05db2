// The run's numbers, for TensorBoard.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "runtime/report/report.h"
#include "runtime/telemetry/appended_file.h"

namespace thinwire {

// One number under the name that its chart gets.
struct Scalar {
  std::string_view tag;
  double value = 0;  // written as float32
};

// The bytes of one event: a protocol buffer `Event` of TensorFlow's event.proto. `wall_time`:
// seconds since 1970.
std::string scalar_event(double wall_time, std::int64_t step, std::span<const Scalar> scalars);
// The event that says that a run starts, or goes on, at `step`. TensorBoard then forgets the
// earlier events in the folder that are of this step or of a later one.
std::string start_event(double wall_time, std::int64_t step);
// What a file begins with.
std::string version_event(double wall_time);

// A record of TensorFlow's TFRecord format: the length and its checksum, then `data` and its
// checksum. Both checksums are masked CRC-32C.
std::string record(std::string_view data);

// A file events.out.tfevents.* in a folder of a run. Each reported step has the numbers of the
// run's MetricsFile under the same names; each evaluation has test_accuracy and test_loss.
//
// A run that resumes writes a file of its own, as TensorBoard expects. Its events replace those of
// the steps that it reports again.
//
// While the file cannot be written its charts have a gap, with a warning; the run goes on.
class TensorBoardFile {
 public:
  // `resumed_at`: the step that the run goes on from; 0 where it starts anew.
  TensorBoardFile(
      const std::string& folder, std::int64_t resumed_at,
      std::function<void()> before_anew = [] {});

  void write(const StepReport& report);
  void write(std::int64_t step, const Evaluation& evaluation);
  // The warning for what happened to the file, or empty. It becomes empty once it was read.
  std::string take_warning() { return file_.take_warning(); }

 private:
  // Appends an event of a step. An empty `event` only makes sure that there is a file.
  void append(std::int64_t step, const std::string& event);

  AppendedFile file_;
};

}  // namespace thinwire
