// What becomes of what was not sent, in plain code.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "collectives/communicator.h"
#include "collectives/compression/codec/codec.h"
#include "collectives/compression/feedback/feedback.h"

namespace thinwire::reference {

// Owns the residuals of one bucket on one rank. A step visits the bucket piece by piece; `begin` is
// the piece's first element in the bucket, tensors are flat views of one piece. Nothing that a
// `rollback` must restore may change before `commit`:
//
//   worker   compensate  g := message            from the gradient and the state
//            absorb      g := new residual       from the message and what was sent of it
//            hold        g := residual           the piece is not sent in this step (frozen)
//   owner    owner_*                             the same for the piece of the mean that it owns
//   all      estimate    d := estimate of mean   from what was received
//
// `before_compressed` comes first, and may talk to the other ranks; what it changes `rollback` puts
// back. A step that goes uncompressed is told before and after instead: `before_dense`, when the
// bucket's gradient is this rank's, and in place of `commit` `on_dense`, when it is the exact mean.
//
// Before `commit`, `leave_out` is told a slice that went through all of it and is absent: its state
// stays as it is, and its part of `gradient`, the bucket's, is its residual again. The exchange
// does not ask for an estimate of it.
//
// `commit` may exchange its storage with the gradient buffer, which holds the new residual then;
// afterwards the buffer's content is free to be overwritten.
class Feedback {
 public:
  virtual ~Feedback() = default;

  virtual void before_compressed(const Bucket& bucket, Communicator& communicator,
                                 std::int64_t step) = 0;
  virtual void compensate(at::Tensor gradient, std::int64_t begin) = 0;
  virtual void absorb(at::Tensor message, std::int64_t begin, const Codec& codec,
                      const at::Tensor& payload) = 0;
  virtual void hold(at::Tensor gradient, std::int64_t begin) = 0;

  virtual void owner_compensate(at::Tensor mean, std::int64_t begin) = 0;
  virtual void owner_absorb(at::Tensor message, std::int64_t begin, const Codec& codec,
                            const at::Tensor& payload) = 0;
  virtual void owner_hold(std::int64_t begin, std::int64_t count) = 0;

  virtual void estimate(at::Tensor decoded, std::int64_t begin) = 0;

  virtual void leave_out(at::Tensor gradient, const Slice& slice) = 0;
  virtual void commit(at::Tensor& gradient) = 0;
  virtual void rollback() = 0;
  virtual void before_dense(const Bucket& bucket) = 0;
  virtual void on_dense(const Bucket& bucket) = 0;

  virtual void visit(const Bucket& bucket, StateVisitor& visitor) = 0;
};

// Nothing is kept.
std::unique_ptr<Feedback> make_no_feedback();

// Error feedback (EF14) in gradient units on both sides of a two-stage exchange:
//   message = g + e, e := message - sent.
// Conservation: sum of estimates + mean of worker residuals + owner residuals = sum of mean
// gradients. `owned` is the part of the bucket that this rank reduces. The residuals have the
// gradient's type.
std::unique_ptr<Feedback> make_error_feedback(const Bucket& bucket, Range owned);

// EControl (Gao, Islamov, Stich, ICLR 2024), in gradient units: every rank's message moves its
// tracker h of its own gradient, with the weight `eta` of the error so far:
//   message = (eta e + g) - h,  e := ((e + g) - h) - sent,  h := h + sent.
// With eta = 0 it is EF21. The owner of a two-stage exchange does the same to its part of the mean
// of the trackers, mean h := mean h + mean sent, in place of g; so nothing is lost by coding twice.
// The estimate is the sum of what was received: of the owners' messages, or with all-gather of the
// ranks' mean messages, which is mean h.
// Sums are rounded, each rank's and the mean's apart. What a rank's own sum loses its next messages
// make up for, but mean h would stay where the largest gradients' rounding has put it, and the
// estimate with it: so it is formed anew from the trackers, bit by bit (`renewed_part`).
//   Conservation, per rank:  sum of h + e = sum of g; per owner: sum of estimates + owner e = sum
//   of mean h.
// A dense step sets h := g, mean h := estimate := mean g, and leaves e.
//
// `eta` in [0, 1], or none: measured per slice from this rank's messages (eta.h). eta = 1 diverges.
std::unique_ptr<Feedback> make_econtrol(const Bucket& bucket, Range owned, Averaging averaging,
                                        std::optional<double> eta);

}  // namespace thinwire::reference
