// What rank 0 shows of a run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

namespace thinwire {

// How far a run is and how it goes.
struct ProgressReport {
  std::int64_t step = 0;  // steps done
  std::int64_t total_steps = 0;
  double epoch = 0;  // passes over the data done
  double loss = 0;
  double samples_per_second = 0;  // all ranks together
  double seconds_left = 0;        // negative: not known yet
  double bytes_per_step = 0;      // that a rank sends; 0: nothing is sent
  double ratio = 1;               // bytes of an uncompressed all-reduce / bytes sent
};

// "step 120/938  epoch 0.13  loss 0.4312  5120 samples/s  ETA 1:23  12.3 kB/step (31.2x)".
std::string format_progress(const ProgressReport& report);

// Writes reports, and lines between them.
class Progress {
 public:
  enum class Mode {
    rewrite,  // each report replaces the last one, for a terminal
    lines,    // each report is a line
  };
  // `rewrite` if `descriptor` (1: stdout, 2: stderr) is a terminal.
  static Mode mode_for(int descriptor);
  // The width of that terminal in characters; 80 if it is none.
  static std::size_t columns_of(int descriptor);

  // `write` gets text that is to be shown at once, and must not throw. `rewrite` cuts reports to
  // less than `columns` (> 0) characters, because a line that wraps cannot be replaced.
  using Write = std::function<void(const std::string& text)>;
  Progress(Write write, Mode mode, std::size_t columns)
      : write_(std::move(write)), mode_(mode), columns_(columns) {}
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void report(const ProgressReport& report);
  // A line that stays, e.g. an epoch's accuracy.
  void line(const std::string& text);

 private:
  void end_report();

  Write write_;
  Mode mode_;
  std::size_t columns_;
  std::size_t open_ = 0;  // characters of the report that may yet be replaced
};

}  // namespace thinwire
