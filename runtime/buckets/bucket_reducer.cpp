#include "runtime/buckets/bucket_reducer.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "runtime/base/error.h"
#include "runtime/base/hash.h"

namespace thinwire {

// The hooks on one parameter each; taken off when destroyed.
struct BucketReducer::Hooks {
  struct Entry {
    at::Tensor parameter;
    unsigned before = 0;
    std::shared_ptr<torch::autograd::Node> accumulator;  // lives as long as it is held here
    std::uintptr_t after = 0;
  };

  explicit Hooks(BucketReducer& reducer) {
    const auto& parameters = reducer.buckets_.parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      Entry entry;
      entry.parameter = parameters[i].tensor;
      // A frozen parameter gets its hooks too, for the day when it thaws.
      const bool frozen = !entry.parameter.requires_grad();
      if (frozen) entry.parameter.set_requires_grad(true);
      entry.before =
          entry.parameter.register_hook([&reducer, i](const at::Tensor&) { reducer.arriving(i); });
      entry.accumulator = torch::autograd::impl::grad_accumulator(entry.parameter);
      entry.after =
          entry.accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
              [&reducer, i](const torch::autograd::variable_list& outputs,
                            const torch::autograd::variable_list&) {
                reducer.arrived(i);
                return outputs;
              }));
      if (frozen) entry.parameter.set_requires_grad(false);
      entries.push_back(std::move(entry));
    }
  }
  ~Hooks() {
    for (auto& entry : entries) {
      entry.parameter.remove_hook(entry.before);
      entry.accumulator->del_post_hook(entry.after);
    }
  }
  Hooks(const Hooks&) = delete;
  Hooks& operator=(const Hooks&) = delete;

  std::vector<Entry> entries;
};

BucketReducer::BucketReducer(GradientBuckets& buckets, GradientReducer& reducer,
                             Communicator& communicator, BucketReducerParts parts)
    : buckets_(buckets),
      reducer_(reducer),
      communicator_(communicator),
      host_queue_(make_host_queue()),
      path_(parts.path ? *parts.path : GradientPath{communicator, *host_queue_, *host_queue_}),
      before_reduce_(std::move(parts.before_reduce)),
      trace_(parts.trace),
      recorder_(parts.recorder),
      touched_(buckets.parameters().size()),
      complete_(buckets.parameters().size()),
      pending_(buckets.buckets().size()),
      hooks_(std::make_unique<Hooks>(*this)) {
  submit([this] { path_.communication.attach_thread(); });
  for (const Bucket& bucket : buckets_.buckets()) {
    reducer_.prepare(bucket, communicator_.rank(), communicator_.size());
  }
}

BucketReducer::~BucketReducer() {
  hooks_.reset();
  if (open_) {
    const std::string reason =
        fmt::format("rank {} left in the middle of a step", communicator_.rank());
    communicator_.abort(reason);
    path_.communicator.abort(reason);
  }
}

void BucketReducer::begin_step(std::int64_t vote) {
  const std::lock_guard lock(mutex_);
  open_step(vote);
}

void BucketReducer::open_step(std::int64_t vote) {
  if (open_) return;
  open_ = true;
  launched_ = 0;
  std::fill(pending_.begin(), pending_.end(), 0);
  std::uint64_t frozen = 0;
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    const auto place = buckets_.place(i);
    Slice& slice = buckets_.buckets()[place.bucket].slices[place.slice];
    slice.frozen = !buckets_.parameters()[i].tensor.requires_grad();
    touched_[i] = false;
    complete_[i] = slice.frozen;
    if (slice.frozen) {
      frozen = hash64(slice.name, frozen + 1);
    } else {
      ++pending_[place.bucket];
    }
  }
  submit([this, vote, frozen] { agree_on_control(vote, frozen); });
}

void BucketReducer::agree_on_control(std::int64_t vote, std::uint64_t frozen) {
  const auto hash = static_cast<std::int64_t>(frozen);
  // The largest complement tells the smallest hash: equal on all ranks or not, in one message.
  const auto largest = all_reduce_max(communicator_, {vote, hash, ~hash});
  vote_ = largest[0];
  if (largest[1] != ~largest[2]) {
    throw RanksDisagree(
        "ranks have frozen different parameters; freeze and thaw the same ones on every rank");
  }
}

void BucketReducer::arriving(std::size_t parameter) {
  const std::lock_guard lock(mutex_);
  open_step(0);
  if (complete_[parameter]) {
    // Its bucket may be on its way already.
    throw UsageError(
        fmt::format("a second gradient of {} arrived in one step; call finish() after each "
                    "backward(), or accumulate() before all but the last",
                    buckets_.parameters()[parameter].name));
  }
  if (touched_[parameter]) return;
  touched_[parameter] = true;
  buckets_.zero(parameter);
  buckets_.attach(parameter);
}

void BucketReducer::arrived(std::size_t parameter) {
  const std::lock_guard lock(mutex_);
  if (!buckets_.attached(parameter)) {
    throw UsageError(fmt::format(
        "the gradient of {} was replaced instead of accumulated into; backward(create_graph=true) "
        "does that, and cannot be used here",
        buckets_.parameters()[parameter].name));
  }
  if (paused_) return;
  complete_[parameter] = true;
  --pending_[buckets_.place(parameter).bucket];
  launch_ready_buckets();
}

void BucketReducer::launch_ready_buckets() {
  while (launched_ < pending_.size() && pending_[launched_] == 0) launch(launched_++);
}

void BucketReducer::launch(std::size_t index) {
  // What got no gradient counts as zero.
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    if (buckets_.place(i).bucket == index && !touched_[i]) buckets_.zero(i);
  }
  // The bucket is ready once what was enqueued until now has run.
  submit([this, &bucket = buckets_.buckets()[index], ready = path_.compute.mark()] {
    stage(bucket, *ready);
  });
}

// A job that fails on this rank alone must not leave the others waiting.
void BucketReducer::submit(std::function<void()> job) {
  thread_.submit([this, job = std::move(job)] {
    try {
      job();
    } catch (const std::exception& error) {
      const std::string reason =
          fmt::format("rank {} failed: {}", communicator_.rank(), error.what());
      communicator_.abort(reason);
      path_.communicator.abort(reason);
      throw;
    }
  });
}

void BucketReducer::stage(Bucket& bucket, const Queue::Mark& ready) {
  const c10::NoGradGuard no_grad;  // thread-local: this thread needs its own
  const auto start = Clock::now();
  path_.communication.wait_for(ready);
  if (recorder_) recorder_->set_bucket(static_cast<std::int64_t>(bucket.index));
  bucket.coded.reset();
  if (before_reduce_) before_reduce_(bucket);
  reducer_.stage(bucket, path_.communicator, step_);
  if (recorder_) recorder_->set_bucket(std::nullopt);
  if (trace_) {
    trace_->span("communication", fmt::format("bucket {}", bucket.index), start, Clock::now());
  }
}

Verdict BucketReducer::finish() {
  const c10::NoGradGuard no_grad;
  {
    const std::lock_guard lock(mutex_);
    open_step(0);
    while (launched_ < pending_.size()) launch(launched_++);
  }
  submit([this] {
    const c10::NoGradGuard no_grad_there;
    const auto start = Clock::now();
    reducer_.settle(path_.communicator);
    if (trace_) trace_->span("communication", "settle", start, Clock::now());
  });
  thread_.drain();

  Verdict verdict;
  verdict.vote = vote_;
  for (const Bucket& bucket : buckets_.buckets()) {
    verdict.non_finite = reducer_.non_finite(bucket);
    if (verdict.non_finite) break;
  }
  for (Bucket& bucket : buckets_.buckets()) {
    if (verdict.committed()) {
      reducer_.commit(bucket);
    } else {
      reducer_.rollback(bucket);
    }
  }
  // Whoever reads the estimates, or accumulates into their buffers next, comes after them.
  path_.compute.wait_for(*path_.communication.mark());
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    // Nobody shall take for a gradient what is in the buffer of a coded one.
    const bool is_coded = buckets_.buckets()[buckets_.place(i).bucket].coded != nullptr;
    if (verdict.committed() && !buckets_.slice(i).frozen && !is_coded) {
      buckets_.attach(i);
    } else {
      buckets_.detach(i);
    }
  }
  const std::lock_guard lock(mutex_);
  open_ = false;
  return verdict;
}

}  // namespace thinwire
