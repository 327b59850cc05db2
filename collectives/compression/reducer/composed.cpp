#include "collectives/compression/reducer/composed.h"

#include "collectives/compression/reducer/rounding.h"
#include "runtime/base/error.h"

namespace thinwire {

ComposedReducer::ComposedReducer(std::unique_ptr<Codec> codec, FeedbackKind feedback,
                                 ExchangeKind exchange, CompressionPolicy policy)
    : codecs_(std::move(codec), std::move(policy)), feedback_(feedback), exchange_(exchange) {}

ComposedReducer::Path& ComposedReducer::path(const Bucket& bucket) {
  const auto found = paths_.find(bucket.index);
  check(found != paths_.end(), "the bucket was prepared");
  return found->second;
}

void ComposedReducer::prepare(const Bucket& bucket, int rank, int size) {
  Path path;
  path.dense = make_all_reduce_exchange();
  if (exchange_ == ExchangeKind::two_stage) {
    path.compressed = make_two_stage_exchange(bucket, codecs_.of(bucket), rank, size);
  } else {
    path.compressed = make_all_reduce_exchange();
  }
  path.feedback = feedback_ == FeedbackKind::error_feedback
                      ? make_error_feedback(bucket, path.compressed->owned())
                      : make_no_feedback();
  paths_.insert_or_assign(bucket.index, std::move(path));
}

void ComposedReducer::stage(Bucket& bucket, Communicator& communicator, const StepContext& step) {
  Path& here = path(bucket);
  here.staged = step.transmission;
  here.used().stage(bucket, *here.feedback, communicator,
                    rounding_keys(step, bucket, communicator.rank()));
}

void ComposedReducer::settle(Communicator&) {}

std::optional<std::string> ComposedReducer::non_finite(const Bucket& bucket) {
  const auto slice = path(bucket).used().non_finite();
  if (!slice) return std::nullopt;
  return bucket.slices[*slice].name;
}

void ComposedReducer::commit(Bucket& bucket) {
  Path& here = path(bucket);
  if (here.staged == Transmission::dense) {
    here.feedback->on_dense(bucket.gradient);
    return;
  }
  here.feedback->commit(bucket.gradient);
  here.compressed->decode(bucket, *here.feedback);
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

}  // namespace thinwire
