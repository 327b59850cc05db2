// What a run tells of itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace thinwire {

// What happened since the last report. It is the same on every rank, except for byte counts, the
// residual and the seconds per step, which are this rank's.
struct StepReport {
  std::int64_t step = 0;  // attempted steps so far
  std::int64_t total_steps = 0;
  double epoch = 0;  // passes over the data so far
  double loss = 0;   // mean per target: per sample, or per character of text
  double lr = 0;     // of the last step
  double samples_per_second = 0;
  double seconds_left = 0;
  double bytes_dense = 0;             // per rank and step, as a ring all-reduce would send
  double bytes_wire = 0;              // per rank and step, as counted where the backend sends
  double residual_ratio = 0;          // norm of the residual over that of the last estimate
  std::int64_t skipped = 0;           // steps rolled back so far
  std::int64_t steps = 0;             // since the last report
  std::int64_t compressed_steps = 0;  // among these
  // Seconds per step of this rank: the whole step, the reducer's arithmetic (0 on a device), and
  // the wait for communication that backward did not hide.
  double step_seconds = 0;
  double arithmetic_seconds = 0;
  double waited_seconds = 0;
  // The mean of the factors by which clipping multiplied what was reduced; 1: nothing was clipped.
  double clip_scale = 1;
  // The rank that was busy longest, that is, not waiting for others, and its busy time as a
  // multiple of the median of the others' (1 on one rank). Only time inside steps counts.
  int slowest_rank = 0;
  double slowest_ratio = 1;
};

// Means over the test set.
struct Evaluation {
  double loss = 0;      // per target; its exponential is a text's perplexity
  double accuracy = 0;  // share of targets
};

struct EndReport {
  StepReport last;  // over the whole run, since its start or resume
  double test_accuracy = 0;
  double test_loss = 0;
  std::string parameters_hash;            // 16 hex digits
  double seconds = 0;                     // since the start or resume
  std::optional<std::string> checkpoint;  // folder of the last one that is whole
  bool checkpoint_is_current = false;     // that one holds the last step
  std::string checkpoint_failure;         // if not: why
  bool stopped = false;                   // by a request, before the end
};

// Is told what happens on its rank.
class TrainerObserver {
 public:
  virtual ~TrainerObserver() = default;
  // A sentence for people: what is compressed, an epoch's accuracy, a checkpoint that failed.
  virtual void on_line(const std::string& line) = 0;
  virtual void on_step(const StepReport& report) = 0;
  // What only this rank knows and people should be told; called on any rank.
  virtual void on_rank_warning(int /*rank*/, const std::string& /*text*/) {}
  // At the end of each epoch and of the run, after `step` steps.
  virtual void on_evaluation(std::int64_t /*step*/, const Evaluation&) {}
};

}  // namespace thinwire
