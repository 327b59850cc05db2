#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "collectives/compression/codec/typed.h"
#include "collectives/compression/feedback/eta.h"
#include "tests/reference/codec.h"
#include "tests/reference/codings.h"
#include "tests/reference/feedback.h"

namespace thinwire::reference {
namespace {

class EControl final : public Feedback {
 public:
  EControl(const Bucket& bucket, Range owned, Averaging averaging, std::optional<double> eta)
      : slices_(bucket.slices),
        state_(make_econtrol_state(bucket, owned, averaging)),
        eta_kind_(eta ? EtaKind::fixed : EtaKind::measured),
        uncoded_(at::zeros_like(bucket.gradient)),
        sent_(at::zeros_like(bucket.gradient)),
        owner_next_(at::zeros_like(state_.owner_residual)),
        mean_tracker_next_(at::zeros_like(state_.mean_tracker)),
        message_energy_(at::zeros_like(state_.eta)),
        error_energy_(at::zeros_like(state_.eta)) {
    if (eta) state_.eta.fill_(*eta);
  }

  void before_compressed(const Bucket& bucket, Communicator& communicator,
                         std::int64_t step) override {
    if (communicator.size() == 1) return;
    std::vector<at::Tensor> trackers;
    std::vector<Range> pieces;
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      const Range piece = part_within(bucket.slices[i], renewed_part(bucket, step));
      if (bucket.layout.rests(i) || piece.count() == 0) continue;
      trackers.push_back(state_.tracker.narrow(0, piece.begin, piece.count()));
      pieces.push_back(piece);
    }
    if (pieces.empty()) return;
    at::Tensor mean = at::cat(trackers);
    communicator.all_reduce(mean, ReduceOp::sum)->wait();
    mean.div_(communicator.size());
    const auto [values, part] = mean_of_trackers(bucket, state_);
    std::int64_t from = 0;
    for (const Range& piece : pieces) {
      const std::int64_t begin = std::max(piece.begin, part.begin);
      const std::int64_t count = std::min(piece.end, part.end) - begin;
      if (count > 0) {
        at::Tensor place = values.narrow(0, begin - part.begin, count);
        renewed_.push_back({begin, place, place.clone()});
        place.copy_(mean.narrow(0, from + begin - piece.begin, count));
      }
      from += piece.count();
    }
  }
  void compensate(at::Tensor gradient, std::int64_t begin) override {
    const std::int64_t count = gradient.numel();
    const at::Tensor e = state_.residual.narrow(0, begin, count);
    const at::Tensor h = state_.tracker.narrow(0, begin, count);
    uncoded_.narrow(0, begin, count).copy_(e).add_(gradient).sub_(h);
    gradient.add_(e.mul(eta_of(begin))).sub_(h);
  }
  void absorb(at::Tensor message, std::int64_t begin, const Codec& codec,
              const at::Tensor& payload) override {
    const std::int64_t count = message.numel();
    at::Tensor sent = sent_.narrow(0, begin, count).zero_();
    decode_add(codec, payload, 1, sent);
    coded_.push_back({begin, begin + count});
    if (eta_kind_ == EtaKind::measured) measure(message, sent, begin, codec);
    message.copy_(uncoded_.narrow(0, begin, count));
    decode_add(codec, payload, -1, message);
  }
  void hold(at::Tensor gradient, std::int64_t begin) override {
    gradient.copy_(state_.residual.narrow(0, begin, gradient.numel()));
  }

  void owner_compensate(at::Tensor mean, std::int64_t begin) override {
    const std::int64_t count = mean.numel();
    const at::Tensor e = owned_part(state_.owner_residual, begin, count);
    const at::Tensor h = state_.estimate.narrow(0, begin, count);
    mean.add_(owned_part(state_.mean_tracker, begin, count));
    owned_part(mean_tracker_next_, begin, count).copy_(mean);
    owned_part(owner_next_, begin, count).copy_(e).add_(mean).sub_(h);
    mean.add_(e.mul(eta_of(begin))).sub_(h);
  }
  void owner_absorb(at::Tensor message, std::int64_t begin, const Codec& codec,
                    const at::Tensor& payload) override {
    decode_add(codec, payload, -1, owned_part(owner_next_, begin, message.numel()));
  }
  void owner_hold(std::int64_t begin, std::int64_t count) override {
    owned_part(owner_next_, begin, count).copy_(owned_part(state_.owner_residual, begin, count));
    owned_part(mean_tracker_next_, begin, count)
        .copy_(owned_part(state_.mean_tracker, begin, count));
  }

  void estimate(at::Tensor decoded, std::int64_t begin) override {
    at::Tensor estimate = state_.estimate.narrow(0, begin, decoded.numel());
    estimate.add_(decoded);
    decoded.copy_(estimate);
  }

  void leave_out(at::Tensor gradient, const Slice& slice) override {
    for (Renewed& piece : renewed_) {
      if (slice.offset <= piece.begin && piece.begin < slice.end()) piece.place.copy_(piece.before);
    }
    hold(gradient.narrow(0, slice.offset, slice.numel), slice.offset);
    const Range own = part_within(slice, state_.owned);
    if (own.count() > 0) owner_hold(own.begin, own.count());
    std::erase_if(coded_, [&](const Range& range) {
      return slice.offset <= range.begin && range.end <= slice.end();
    });
    if (slice.numel == 0) return;
    message_energy_.narrow(0, slice_at(slice.offset), 1).zero_();
    error_energy_.narrow(0, slice_at(slice.offset), 1).zero_();
  }
  void commit(at::Tensor& gradient) override {
    for (const Range& range : coded_) {
      state_.tracker.narrow(0, range.begin, range.count())
          .add_(sent_.narrow(0, range.begin, range.count()));
    }
    std::swap(gradient, state_.residual);
    std::swap(state_.owner_residual, owner_next_);
    std::swap(state_.mean_tracker, mean_tracker_next_);
    if (eta_kind_ == EtaKind::measured) renew_eta();
    forget_step();
  }
  void rollback() override {
    for (Renewed& piece : renewed_) piece.place.copy_(piece.before);
    forget_step();
  }

  void before_dense(const Bucket& bucket) override { local_ = bucket.gradient.clone(); }
  void on_dense(const Bucket& bucket) override {
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      const Slice& slice = bucket.slices[i];
      if (bucket.rests(i)) continue;
      const at::Tensor mean = bucket.gradient.narrow(0, slice.offset, slice.numel);
      state_.tracker.narrow(0, slice.offset, slice.numel)
          .copy_(local_.narrow(0, slice.offset, slice.numel));
      state_.estimate.narrow(0, slice.offset, slice.numel).copy_(mean);
      const std::int64_t begin = std::max(slice.offset, state_.owned.begin);
      const std::int64_t end = std::min(slice.end(), state_.owned.end);
      if (begin >= end) continue;
      owned_part(state_.mean_tracker, begin, end - begin)
          .copy_(mean.narrow(0, begin - slice.offset, end - begin));
    }
  }

  void visit(const Bucket& bucket, StateVisitor& visitor) override {
    visit_econtrol(bucket, state_, eta_kind_, visitor);
  }

 private:
  // A piece of the mean of the trackers that was formed anew.
  struct Renewed {
    std::int64_t begin = 0;
    at::Tensor place;
    at::Tensor before;
  };

  at::Tensor owned_part(const at::Tensor& of, std::int64_t begin, std::int64_t count) const {
    return of.narrow(0, begin - state_.owned.begin, count);
  }
  std::int64_t slice_at(std::int64_t begin) const {
    const auto found = std::find_if(slices_.begin(), slices_.end(), [&](const Slice& slice) {
      return slice.offset <= begin && begin < slice.end();
    });
    check(found != slices_.end(), "a piece belongs to a slice");
    return found - slices_.begin();
  }
  at::Tensor eta_of(std::int64_t begin) const { return state_.eta.narrow(0, slice_at(begin), 1); }

  // Adds the energies of a piece's blocks, in their order.
  void measure(const at::Tensor& message, const at::Tensor& sent, std::int64_t begin,
               const Codec& codec) {
    if (codec.format(codec.block()).coding == Coding::raw) return;
    const std::int64_t slice = slice_at(begin);
    with_type(message.scalar_type(), [&]<typename T>(T) {
      const T* m = message.const_data_ptr<T>();
      const T* d = sent.const_data_ptr<T>();
      for_each_block<T>(codec, message.numel(), [&](const CodedBlock& block) {
        const auto square = [&](const auto& value) {
          std::vector<T> terms;
          for (std::int64_t i = 0; i < block.count; ++i) {
            const T x = value(block.begin + i);
            terms.push_back(x * x);
          }
          return sum_in_lanes(terms);
        };
        message_energy_.data_ptr<T>()[slice] += square([&](std::int64_t i) { return m[i]; });
        error_energy_.data_ptr<T>()[slice] += square([&](std::int64_t i) { return m[i] - d[i]; });
      });
    });
  }
  void renew_eta() {
    with_type(state_.eta.scalar_type(), [&]<typename T>(T) {
      T* eta = state_.eta.data_ptr<T>();
      for (std::int64_t i = 0; i < state_.eta.numel(); ++i) {
        eta[i] = next_eta(eta[i], message_energy_.data_ptr<T>()[i], error_energy_.data_ptr<T>()[i]);
      }
    });
  }
  void forget_step() {
    renewed_.clear();
    coded_.clear();
    message_energy_.zero_();
    error_energy_.zero_();
  }

  const std::vector<Slice> slices_;  // their places; which are frozen changes
  EControlState state_;
  const EtaKind eta_kind_;
  // Of the step that is under way:
  std::vector<Renewed> renewed_;
  at::Tensor uncoded_;        // (e + g) - h
  at::Tensor sent_;           // what this rank's message decodes to
  std::vector<Range> coded_;  // the pieces that are in it
  at::Tensor owner_next_;
  at::Tensor mean_tracker_next_;
  at::Tensor message_energy_;  // one per slice
  at::Tensor error_energy_;
  at::Tensor local_;  // the gradient before a dense step
};

}  // namespace

std::unique_ptr<Feedback> make_econtrol(const Bucket& bucket, Range owned, Averaging averaging,
                                        std::optional<double> eta) {
  return std::make_unique<EControl>(bucket, owned, averaging, eta);
}

}  // namespace thinwire::reference
