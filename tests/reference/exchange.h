// How the ranks' messages become one mean, in plain code.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/communicator.h"
#include "collectives/compression/reducer/owners.h"
#include "collectives/compression/reducer/rounding.h"
#include "tests/reference/feedback.h"

namespace thinwire::reference {

// The way of one bucket from gradients to what is needed for the estimate. One object per bucket
// and rank. `stage` sends and keeps; `non_finite` names a slice to which some rank's contribution
// was not finite, with the same answer on every rank and no further message; `decode` writes the
// estimate of the mean into the bucket's gradient buffer (after the feedback's commit), but for
// absent slices.
class Exchange {
 public:
  virtual ~Exchange() = default;
  // The part of the bucket that this rank reduces for the others.
  virtual Range owned() const = 0;
  virtual void stage(Bucket& bucket, Feedback& feedback, Communicator& communicator,
                     const RoundingKeys& keys) = 0;
  virtual std::optional<std::size_t> non_finite() const = 0;
  virtual void decode(Bucket& bucket, Feedback& feedback) = 0;
};

// Sums the gradient itself, without slices that rest: for formats that add, that is uncompressed
// values.
std::unique_ptr<Exchange> make_all_reduce_exchange();

// Each rank sends every other the coded chunk that it owns; the owner decodes and averages them in
// rank order, codes the mean with its own feedback and sends it to all. `codecs` has one entry per
// slice. On one rank the same arithmetic runs, and nothing is sent.
std::unique_ptr<Exchange> make_two_stage_exchange(const Bucket& bucket, const CodecOfSlice& codecs,
                                                  int rank, int size);

// Each rank sends its whole message to all; everyone decodes all of them, in rank order, and
// averages: (0 + decoded from rank 0 + decoded from rank 1 + ...) / ranks. Nothing is coded twice
// and nobody owns a part, but bytes grow with the number of ranks. `codecs` as above.
std::unique_ptr<Exchange> make_all_gather_exchange(const Bucket& bucket,
                                                   const CodecOfSlice& codecs);

}  // namespace thinwire::reference
