// Gradients as autograd makes them, handed over bucket by bucket while backward goes on.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/buckets/gradient_buckets.h"
#include "runtime/step/transaction.h"

namespace thinwire {

// How it is known that no more of a parameter's gradient will come in a step.
enum class Counting {
  declared,  // the driver says so: the first backward that is not held back is the last
  learned,   // from the steps before: a parameter has got all once as many gradients arrived as in
             // any of them. Nothing is sent before `finish` in the first two steps.
};

// Watches the gradients of a transaction's buckets arrive: autograd's accumulators call it before
// and after they add to a parameter's grad(). A call that only computes gradients
// (torch::autograd::grad) has no effect.
//
// After a committed step every parameter's grad() is an alias of the group's estimate. After a
// rollback, where the estimate is coded, and for what no rank had a gradient of, grad() is
// undefined, so that an optimizer that steps anyway moves nothing. What arrives after `finish`
// belongs to the next step: the first gradient of a parameter zeroes its slot and attaches its
// alias again, whatever the user's zero_grad() did in between.
//
// Until a parameter's bucket is sent, its gradient is what grad() says: zero_grad() drops it, a
// tensor that is assigned to grad() replaces it. From then until `finish` grad() is NaN and cannot
// be written to, and another gradient is an error, unless all that was sent was dropped meanwhile:
// then the step begins anew on all ranks.
//
// A parameter that gets no gradient counts as zero. One that does not require a gradient is frozen:
// it is in no update and holds its residual.
class GradientArrival {
 public:
  // All must outlive this.
  GradientArrival(GradientBuckets& buckets, StepTransaction& transaction, Counting counting);
  ~GradientArrival();
  GradientArrival(const GradientArrival&) = delete;
  GradientArrival& operator=(const GradientArrival&) = delete;

  // Opens the step now rather than at its first gradient, so that the ranks' words travel while
  // forward runs.
  void begin_step(const OpeningWord& word);
  // Hands over what is left and ends the step; see `StepTransaction::finish`. `without` says what
  // it means if this rank has no new gradient.
  Verdict finish(StepEnd without = StepEnd::unused);
  // The same where every sample weighs alike, whichever rank has it; this rank had `samples` of
  // them and its gradient is their mean. 0: it may have no gradient.
  Verdict finish_weighted(std::int64_t samples);
  // The step is rolled back on every rank; they are told why.
  Verdict abandon(const std::string& why);

  // Throws `UsageError` for a parameter whose gradient another object reduces.
  static void require_free(const std::vector<Parameter>& parameters);
  // Whether a `HeldBack` or an `Ignored` is alive.
  bool is_held_back() const { return held_back_ > 0 || ignored_ > 0; }

  // What the accumulators call, also to drive this without autograd: a gradient of `parameter` is
  // about to be accumulated into its grad() (false: it shall be dropped); it has been.
  bool arriving(std::size_t parameter);
  void arrived(std::size_t parameter);

 private:
  struct Hooks;
  friend class HeldBack;
  friend class Ignored;

  void open_step(const OpeningWord& word);
  void freeze_and_thaw();
  void clear_step();
  void restart();
  void begin_anew_what_was_dropped();
  void attach_for_new_gradient(std::size_t parameter);
  [[noreturn]] void refuse_another_gradient(std::size_t parameter) const;
  void put_away(std::size_t parameter);
  void take_from_grad(std::size_t parameter);
  bool is_dropped(std::size_t parameter) const;
  bool sends_early() const;
  std::int64_t expected(std::size_t parameter) const;
  void hand_over_complete_buckets();
  void hand_over(std::size_t bucket);
  void take_what_was_assigned();
  std::optional<std::string> changed_after_it_was_sent() const;
  Verdict end_step(const StepClosing& closing, const SamplesWord& samples);
  void attach_estimates(const Verdict& verdict);
  void detach_all();
  const std::string& name(std::size_t parameter) const;

  GradientBuckets& buckets_;
  StepTransaction& transaction_;
  Counting counting_;

  std::mutex mutex_;   // hooks of a device run on an engine thread
  int held_back_ = 0;  // guards that are alive
  int ignored_ = 0;
  std::int64_t steps_ = 0;                      // that have ended
  Weighting weighting_ = Weighting::undecided;  // of all steps
  std::vector<bool> touched_;                   // per parameter: its slot has this step's gradient
  std::vector<bool> frozen_;                    // per parameter: as the layouts have it
  std::vector<std::int64_t> arrivals_;          // per parameter: in this step, not held back
  std::vector<std::int64_t> most_arrivals_;     // per parameter: in any step before
  std::vector<std::int64_t> missing_;           // per bucket: parameters that expect more
  std::vector<at::Tensor> in_flight_;  // per parameter: what grad() is until `finish`; see put_away

  std::unique_ptr<Hooks> hooks_;  // last: no hook may run into a half-destroyed object
};

// While alive, gradients accumulate and are not sent: of all micro-batches but the last. Guards may
// be nested.
class HeldBack {
 public:
  explicit HeldBack(GradientArrival& arrival) : arrival_(arrival) { ++arrival_.held_back_; }
  ~HeldBack() { --arrival_.held_back_; }
  HeldBack(const HeldBack&) = delete;
  HeldBack& operator=(const HeldBack&) = delete;

 private:
  GradientArrival& arrival_;
};

// While alive, gradients that arrive are another model's and are dropped. Guards may be nested.
class Ignored {
 public:
  explicit Ignored(GradientArrival& arrival) : arrival_(arrival) { ++arrival_.ignored_; }
  ~Ignored() { --arrival_.ignored_; }
  Ignored(const Ignored&) = delete;
  Ignored& operator=(const Ignored&) = delete;

 private:
  GradientArrival& arrival_;
};

}  // namespace thinwire
