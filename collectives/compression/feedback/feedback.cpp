#include "collectives/compression/feedback/feedback.h"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

namespace thinwire {

void visit_residuals(const Bucket& bucket, const at::Tensor& residual, Range owned,
                     const at::Tensor& owner_residual, StateVisitor& visitor) {
  for (const auto& slice : bucket.slices) {
    visitor.tensor({.name = "residual/" + slice.name,
                    .kind = StateKind::averaged,
                    .tensor = residual.narrow(0, slice.offset, slice.numel).view(slice.shape)});
    const std::int64_t begin = std::max(slice.offset, owned.begin);
    const std::int64_t end = std::min(slice.end(), owned.end);
    if (begin >= end) continue;
    visitor.tensor({.name = "owner_residual/" + slice.name,
                    .kind = StateKind::ranged,
                    .tensor = owner_residual.narrow(0, begin - owned.begin, end - begin),
                    .begin = begin - slice.offset,
                    .end = end - slice.offset});
  }
}

EControlState make_econtrol_state(const Bucket& bucket, Range owned, Averaging averaging) {
  EControlState state;
  state.averaging = averaging;
  state.residual = at::zeros_like(bucket.gradient);
  state.tracker = at::zeros_like(bucket.gradient);
  state.estimate = at::zeros_like(bucket.gradient);
  const auto options = bucket.gradient.options();
  state.eta = at::zeros({static_cast<std::int64_t>(bucket.slices.size())}, options);
  state.owned = owned;
  state.owner_residual = at::zeros({owned.count()}, options);
  state.mean_tracker = at::zeros({owned.count()}, options);
  return state;
}

MeanOfTrackers mean_of_trackers(const Bucket& bucket, const EControlState& state) {
  if (state.averaging == Averaging::by_owners) return {state.mean_tracker, state.owned};
  return {state.estimate, {0, bucket.numel()}};
}

Range renewed_part(const Bucket& bucket, std::int64_t step) {
  constexpr std::int64_t kEvery = 16;
  constexpr std::int64_t kParts = 80;
  // Buckets take turns.
  const std::int64_t turn = step + bucket.index;
  if (turn % kEvery != 0) return {};
  const std::int64_t part = turn / kEvery % kParts;
  return {bucket.numel() * part / kParts, bucket.numel() * (part + 1) / kParts};
}

void visit_econtrol(const Bucket& bucket, const EControlState& state, EtaKind eta,
                    StateVisitor& visitor) {
  visit_residuals(bucket, state.residual, state.owned, state.owner_residual, visitor);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    const auto show = [&](const char* what, const at::Tensor& of, StateKind kind) {
      visitor.tensor({.name = what + slice.name,
                      .kind = kind,
                      .tensor = of.narrow(0, slice.offset, slice.numel).view(slice.shape)});
    };
    show("tracker/", state.tracker, StateKind::averaged);
    show(state.averaging == Averaging::by_owners ? "estimate_of_owners/" : "estimate/",
         state.estimate, StateKind::replicated);
    if (eta == EtaKind::measured) {
      visitor.tensor({.name = "eta/" + slice.name,
                      .kind = StateKind::averaged,
                      .tensor = state.eta.narrow(0, static_cast<std::int64_t>(i), 1)});
    }
    const std::int64_t begin = std::max(slice.offset, state.owned.begin);
    const std::int64_t end = std::min(slice.end(), state.owned.end);
    if (begin >= end) continue;
    visitor.tensor({.name = "mean_tracker/" + slice.name,
                    .kind = StateKind::ranged,
                    .tensor = state.mean_tracker.narrow(0, begin - state.owned.begin, end - begin),
                    .begin = begin - slice.offset,
                    .end = end - slice.offset});
  }
}

}  // namespace thinwire
