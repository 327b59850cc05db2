// What ranks tell one another at the two ends of a step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/communicator.h"

namespace thinwire {

// How a rank ends a step.
enum class StepEnd : std::int64_t {
  finished,    // with a gradient that is new
  idle,        // without one, by intention: it had no samples in this step, or has joined
  unused,      // without one, though a gradient was expected
  abandoned,   // it cannot go on with this step
  superseded,  // its gradients were dropped after they had been sent
};

// What a rank says before anything else of a step is sent: 16 bytes.
struct OpeningWord {
  std::uint64_t layouts = 0;  // a hash of the step's number and the buckets' layouts
  std::int32_t vote = 0;      // the largest reaches everybody through the verdict
  // 1 + the place of a slice that was not finite in a silent step since the last one that the ranks
  // agreed on; 0: none.
  std::uint32_t silent_failure : 31 = 0;
  // 1: the rank has no more samples and only keeps the others company.
  std::uint32_t joined : 1 = 0;
};

// How the ranks' gradients weigh in their mean.
enum class Weighting : std::int64_t {
  undecided,   // no finish has told
  equal,       // every rank alike
  by_samples,  // every sample alike
};

// What a rank says of its samples, before anything of its gradients is sent.
struct SamplesWord {
  Weighting weighting = Weighting::undecided;
  std::int64_t samples = 0;
};

// What the ranks' sample counts come to.
struct AgreedWeight {
  Weighting weighting = Weighting::undecided;
  double factor = 1;  // of this rank's gradient: the mean over ranks weighs every sample alike then
};

// What a rank says when it ends a step.
struct ClosingWord {
  StepEnd end = StepEnd::finished;
  std::vector<bool> used;  // for each slice of all buckets: this rank had a gradient of it
};

// Collective: every rank's word, in rank order.
std::vector<OpeningWord> exchange(Communicator& communicator, const OpeningWord& mine);
std::vector<SamplesWord> exchange(Communicator& communicator, const SamplesWord& mine);

// A closing word on its way; the ranks may do other things meanwhile.
class ClosingExchange {
 public:
  ClosingExchange(Communicator& communicator, const ClosingWord& mine);
  // Blocks; every rank's word, in rank order.
  std::vector<ClosingWord> wait();

 private:
  std::size_t slices_;
  std::int64_t words_;  // of 64 bits, of one rank
  at::Tensor mine_, all_;
  std::unique_ptr<Work> work_;
};

// Throws `AgreedError` where some ranks weigh by samples and others do not.
AgreedWeight agree(const std::vector<SamplesWord>& words, int rank);

}  // namespace thinwire
