// What becomes of what was not sent.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "collectives/bucket.h"
#include "collectives/compression/codec/codec.h"
#include "runtime/base/state.h"

namespace thinwire {

// Elements [begin, end) of a bucket.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t count() const { return end - begin; }
};

// Owns the residuals of one bucket on one rank. A step visits the bucket piece by piece; `begin` is
// the piece's first element in the bucket, tensors are flat views of one piece. Nothing that a
// `rollback` must restore may change before `commit`:
//
//   worker   compensate  g := message            from the gradient and the state
//            absorb      g := new residual       from the message and what was sent of it
//            hold        g := residual           the piece is not sent in this step (frozen)
//   owner    owner_*                             the same for the piece of the mean that this rank
//   owns all      estimate    d := estimate of mean   from what was received
//
// `commit` may exchange its storage with the gradient buffer, which holds the new residual then;
// afterwards the buffer's content is free to be overwritten.
class Feedback {
 public:
  virtual ~Feedback() = default;

  virtual void compensate(at::Tensor gradient, std::int64_t begin) = 0;
  virtual void absorb(at::Tensor message, std::int64_t begin, const Codec& codec,
                      const at::Tensor& payload) = 0;
  virtual void hold(at::Tensor gradient, std::int64_t begin) = 0;

  virtual void owner_compensate(at::Tensor mean, std::int64_t begin) = 0;
  virtual void owner_absorb(at::Tensor message, std::int64_t begin, const Codec& codec,
                            const at::Tensor& payload) = 0;
  virtual void owner_hold(std::int64_t begin, std::int64_t count) = 0;

  virtual void estimate(at::Tensor decoded, std::int64_t begin) = 0;

  virtual void commit(at::Tensor& gradient) = 0;
  virtual void rollback() = 0;
  // The step goes uncompressed: `mean` is the exact mean gradient of the whole bucket.
  virtual void on_dense(const at::Tensor& mean) = 0;

  virtual void visit(const Bucket& bucket, StateVisitor& visitor) = 0;
};

// Nothing is kept.
std::unique_ptr<Feedback> make_no_feedback();

// Shows the residuals of error feedback: a worker's for the whole bucket, and an owner's for its
// part `owned`, by parameter and range.
void visit_residuals(const Bucket& bucket, const at::Tensor& residual, Range owned,
                     const at::Tensor& owner_residual, StateVisitor& visitor);

// EControl's trackers: of this rank's messages, of the mean of all ranks' (the part that this rank
// owns), and of what everybody decoded.
struct Trackers {
  at::Tensor own;
  at::Tensor mean;
  at::Tensor estimate;
};
void visit_trackers(const Bucket& bucket, const Trackers& trackers, Range owned,
                    StateVisitor& visitor);

// Error feedback (EF14) in gradient units on both sides of a two-stage exchange:
//   message = g + e, e := message - sent.
// Conservation: sum of estimates + mean of worker residuals + owner residuals = sum of mean
// gradients. `owned` is the part of the bucket that this rank reduces. The residuals have the
// gradient's type.
std::unique_ptr<Feedback> make_error_feedback(const Bucket& bucket, Range owned);

}  // namespace thinwire
