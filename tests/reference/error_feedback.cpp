#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <utility>

#include "tests/reference/codec.h"
#include "tests/reference/feedback.h"

namespace thinwire::reference {
namespace {

class ErrorFeedback final : public Feedback {
 public:
  ErrorFeedback(const Bucket& bucket, Range owned)
      : residual_(at::zeros_like(bucket.gradient)),
        owned_(owned),
        owner_residual_(at::zeros({owned.count()}, bucket.gradient.options())),
        owner_next_(at::zeros_like(owner_residual_)) {}

  void before_compressed(const Bucket&, Communicator&, std::int64_t) override {}
  void compensate(at::Tensor gradient, std::int64_t begin) override {
    gradient.add_(residual_.narrow(0, begin, gradient.numel()));
  }
  void absorb(at::Tensor message, std::int64_t, const Codec& codec,
              const at::Tensor& payload) override {
    decode_add(codec, payload, -1, message);
  }
  void hold(at::Tensor gradient, std::int64_t begin) override {
    gradient.copy_(residual_.narrow(0, begin, gradient.numel()));
  }

  void owner_compensate(at::Tensor mean, std::int64_t begin) override {
    mean.add_(owner_residual_.narrow(0, begin - owned_.begin, mean.numel()));
  }
  void owner_absorb(at::Tensor message, std::int64_t begin, const Codec& codec,
                    const at::Tensor& payload) override {
    at::Tensor next = owner_next_.narrow(0, begin - owned_.begin, message.numel());
    next.copy_(message);
    decode_add(codec, payload, -1, next);
  }
  void owner_hold(std::int64_t begin, std::int64_t count) override {
    owner_next_.narrow(0, begin - owned_.begin, count)
        .copy_(owner_residual_.narrow(0, begin - owned_.begin, count));
  }

  void estimate(at::Tensor, std::int64_t) override {}

  void leave_out(at::Tensor gradient, const Slice& slice) override {
    hold(gradient.narrow(0, slice.offset, slice.numel), slice.offset);
    const Range own = part_within(slice, owned_);
    if (own.count() > 0) owner_hold(own.begin, own.count());
  }
  void commit(at::Tensor& gradient) override {
    std::swap(gradient, residual_);
    std::swap(owner_residual_, owner_next_);
  }
  void rollback() override {}
  void before_dense(const Bucket&) override {}
  void on_dense(const Bucket&) override {}

  void visit(const Bucket& bucket, StateVisitor& visitor) override {
    visit_residuals(bucket, residual_, owned_, owner_residual_, visitor);
  }

 private:
  at::Tensor residual_;  // the gradient's size; exchanges its storage with the gradient at commit
  Range owned_;
  at::Tensor owner_residual_;  // of the mean's piece that this rank owns, before this step
  at::Tensor owner_next_;      // and after it
};

}  // namespace

std::unique_ptr<Feedback> make_error_feedback(const Bucket& bucket, Range owned) {
  return std::make_unique<ErrorFeedback>(bucket, owned);
}

}  // namespace thinwire::reference
