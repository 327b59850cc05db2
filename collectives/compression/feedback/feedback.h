// What a feedback keeps of one bucket on one rank: what was not sent is part of later messages.
// The reducers form it with kernels (kernels.h has the arithmetic); tests/reference says the same
// in plain code.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "collectives/base/state.h"
#include "collectives/bucket.h"

namespace thinwire {

// The elements of a slice that are in `range`; none: begin is end.
inline Range part_within(const Slice& slice, Range range) {
  const std::int64_t begin = std::max(slice.offset, range.begin);
  return {begin, std::max(begin, std::min(slice.end(), range.end))};
}

// Shows the residuals of error feedback: a worker's for the whole bucket, and an owner's for its
// part `owned`, by parameter and range.
void visit_residuals(const Bucket& bucket, const at::Tensor& residual, Range owned,
                     const at::Tensor& owner_residual, StateVisitor& visitor);

// Who averages the ranks' messages: the owner of each part, or everybody.
enum class Averaging { by_owners, by_all };

// What EControl keeps of one bucket on one rank, all of the gradient's type.
struct EControlState {
  at::Tensor residual;  // e, the bucket's size, as the next two
  at::Tensor tracker;   // h: the sum of what this rank sent
  at::Tensor estimate;  // the same on every rank: the sum of what was received from all
  at::Tensor eta;       // one per slice
  // Under which name the estimate is kept: by owners it is the sum of what they sent, by all the
  // mean of the trackers, and one must not be taken for the other when a run is resumed.
  Averaging averaging = Averaging::by_owners;
  Range owned;
  at::Tensor owner_residual;  // of the part `owned`, as the next one
  at::Tensor mean_tracker;    // the mean of the ranks' trackers
};

EControlState make_econtrol_state(const Bucket& bucket, Range owned, Averaging averaging);

// Whether the weights of the error follow from the messages, hence are state.
enum class EtaKind { fixed, measured };

// What is the mean of the ranks' trackers, and of which part of the bucket this rank has it.
struct MeanOfTrackers {
  at::Tensor values;
  Range part;
};
MeanOfTrackers mean_of_trackers(const Bucket& bucket, const EControlState& state);

// The part of the bucket for which a compressed step, counted as StepContext does, begins with the
// mean of the trackers formed anew from them, in slices that are not frozen: one of 80 in every
// sixteenth step, each at its turn. That sends 2 (n - 1) / n * 32 / 1280 bits per value and step of
// n ranks, less than .05.
Range renewed_part(const Bucket& bucket, std::int64_t step);

// Shows it by parameter and range, the weights only if they are measured.
void visit_econtrol(const Bucket& bucket, const EControlState& state, EtaKind eta,
                    StateVisitor& visitor);

}  // namespace thinwire
