#include "tests/reference/composed.h"

#include "collectives/base/error.h"
#include "collectives/compression/feedback/eta.h"
#include "collectives/compression/reducer/rounding.h"

namespace thinwire::reference {

ComposedReducer::ComposedReducer(const CompressionOptions& options)
    : feedback_(options.feedback), codecs_(options), exchange_(options.exchange) {
  eta_ = fixed_eta(feedback_.eta, codecs_.codec());
}

ComposedReducer::Path& ComposedReducer::path(const Bucket& bucket) {
  const auto found = paths_.find(bucket.index);
  check(found != paths_.end(), "the bucket was prepared");
  return found->second;
}

std::unique_ptr<Exchange> ComposedReducer::make_exchange(const Bucket& bucket, int rank,
                                                         int size) const {
  switch (exchange_) {
    case ExchangeKind::all_reduce:
      return make_all_reduce_exchange();
    case ExchangeKind::two_stage:
      return make_two_stage_exchange(bucket, codecs_.of(bucket), rank, size);
    case ExchangeKind::all_gather:
      return make_all_gather_exchange(bucket, codecs_.of(bucket));
    case ExchangeKind::automatic:
      break;
  }
  throw Bug("bug: the exchange is not resolved");
}

std::unique_ptr<Feedback> ComposedReducer::make_feedback(const Bucket& bucket, Range owned) const {
  switch (feedback_.kind) {
    case FeedbackKind::none:
      return make_no_feedback();
    case FeedbackKind::error_feedback:
      return make_error_feedback(bucket, owned);
    case FeedbackKind::econtrol:
      return make_econtrol(
          bucket, owned,
          exchange_ == ExchangeKind::all_gather ? Averaging::by_all : Averaging::by_owners, eta_);
    case FeedbackKind::automatic:
      break;
  }
  throw Bug("bug: the feedback is not resolved");
}

void ComposedReducer::prepare(const Bucket& bucket, int rank, int size) {
  check(bucket.gradient.is_cpu(), "the plain composition runs in host memory");
  Path path;
  path.dense = make_all_reduce_exchange();
  path.compressed = make_exchange(bucket, rank, size);
  path.feedback = make_feedback(bucket, path.compressed->owned());
  paths_.insert_or_assign(bucket.index, std::move(path));
}

void ComposedReducer::stage(Bucket& bucket, Communicator& communicator, const StepContext& step) {
  Path& here = path(bucket);
  here.staged = step.transmission;
  if (here.staged == Transmission::dense) {
    here.feedback->before_dense(bucket);
  } else {
    here.feedback->before_compressed(bucket, communicator, step.step);
  }
  here.used().stage(bucket, *here.feedback, communicator,
                    rounding_keys(step, bucket, communicator.rank()));
}

void ComposedReducer::settle(Communicator&) {}

std::optional<std::string> ComposedReducer::non_finite(const Bucket& bucket) {
  const auto slice = path(bucket).used().non_finite();
  if (!slice) return std::nullopt;
  return bucket.slices[*slice].name;
}

void ComposedReducer::show_estimate(const Bucket&, Bucket&) {
  throw Bug("bug: the plain composition has no estimate before it commits");
}

void ComposedReducer::commit(Bucket& bucket) {
  Path& here = path(bucket);
  if (here.staged == Transmission::dense) {
    here.feedback->on_dense(bucket);
  } else {
    for (const Slice& slice : bucket.slices) {
      if (slice.absent) here.feedback->leave_out(bucket.gradient, slice);
    }
    here.feedback->commit(bucket.gradient);
    here.compressed->decode(bucket, *here.feedback);
  }
  for (const Slice& slice : bucket.slices) {
    if (slice.absent) bucket.gradient.narrow(0, slice.offset, slice.numel).zero_();
  }
}

void ComposedReducer::rollback(Bucket& bucket) {
  path(bucket).feedback->rollback();
}

void ComposedReducer::visit(const Bucket& bucket, StateVisitor& visitor) {
  path(bucket).feedback->visit(bucket, visitor);
}

std::vector<SlicePlan> ComposedReducer::plan(const Bucket& bucket) const {
  return codecs_.plan(bucket);
}

}  // namespace thinwire::reference
