#include "runtime/buckets/bucket_reducer.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "runtime/base/error.h"

namespace thinwire {

// The hooks on one parameter each; taken off when destroyed.
struct BucketReducer::Hooks {
  struct Entry {
    at::Tensor parameter;
    unsigned before = 0;
    std::shared_ptr<torch::autograd::Node> accumulator;  // lives as long as it is held here
    std::uintptr_t after = 0;
  };

  explicit Hooks(std::size_t count) : entries(count) {}
  ~Hooks() {
    for (auto& entry : entries) {
      if (!entry.accumulator) continue;
      entry.parameter.remove_hook(entry.before);
      entry.accumulator->del_post_hook(entry.after);
    }
  }
  Hooks(const Hooks&) = delete;
  Hooks& operator=(const Hooks&) = delete;

  std::vector<Entry> entries;
};

BucketReducer::BucketReducer(GradientBuckets& buckets, GradientReducer& reducer,
                             Communicator& communicator, BeforeReduce before_reduce, Trace* trace)
    : buckets_(buckets),
      reducer_(reducer),
      communicator_(communicator),
      before_reduce_(std::move(before_reduce)),
      trace_(trace),
      touched_(buckets.parameters().size()),
      complete_(buckets.parameters().size()),
      pending_(buckets.buckets().size()),
      hooks_(std::make_unique<Hooks>(buckets.parameters().size())) {
  for (const Bucket& bucket : buckets_.buckets()) {
    reducer_.prepare(bucket, communicator_.rank(), communicator_.size());
  }
  install_hooks();
}

BucketReducer::~BucketReducer() {
  hooks_.reset();
  if (!thread_.idle()) {
    communicator_.abort(fmt::format("rank {} left in the middle of a step", communicator_.rank()));
  }
}

void BucketReducer::install_hooks() {
  for (std::size_t i = 0; i < hooks_->entries.size(); ++i) {
    Hooks::Entry& entry = hooks_->entries[i];
    const at::Tensor& parameter = buckets_.parameters()[i].tensor;
    if (entry.accumulator || !parameter.requires_grad()) continue;
    entry.parameter = parameter;
    entry.before = parameter.register_hook([this, i](const at::Tensor&) { arriving(i); });
    entry.accumulator = torch::autograd::impl::grad_accumulator(parameter);
    entry.after =
        entry.accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
            [this, i](const torch::autograd::variable_list& outputs,
                      const torch::autograd::variable_list&) {
              arrived(i);
              return outputs;
            }));
  }
}

void BucketReducer::open_step() {
  if (open_) return;
  open_ = true;
  launched_ = 0;
  install_hooks();  // of parameters that have been thawed
  std::fill(pending_.begin(), pending_.end(), 0);
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    const auto place = buckets_.place(i);
    Slice& slice = buckets_.buckets()[place.bucket].slices[place.slice];
    slice.frozen = !buckets_.parameters()[i].tensor.requires_grad();
    touched_[i] = false;
    complete_[i] = slice.frozen;
    if (!slice.frozen) ++pending_[place.bucket];
  }
}

void BucketReducer::arriving(std::size_t parameter) {
  const std::lock_guard lock(mutex_);
  open_step();
  if (complete_[parameter]) {
    // Its bucket may be on its way already.
    throw UsageError(
        fmt::format("a second gradient of {} arrived in one step; call finish() after "
                    "each backward(), or accumulate() before all but the last",
                    buckets_.parameters()[parameter].name));
  }
  if (touched_[parameter]) return;
  touched_[parameter] = true;
  buckets_.zero(parameter);
  buckets_.attach(parameter);
}

void BucketReducer::arrived(std::size_t parameter) {
  const std::lock_guard lock(mutex_);
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
  thread_.submit([this, &bucket = buckets_.buckets()[index]] { stage(bucket); });
}

void BucketReducer::stage(Bucket& bucket) {
  const c10::NoGradGuard no_grad;  // thread-local: this thread needs its own
  const auto start = Clock::now();
  if (before_reduce_) before_reduce_(bucket);
  reducer_.stage(bucket, communicator_, step_);
  if (trace_) {
    trace_->span("communication", fmt::format("bucket {}", bucket.index), start, Clock::now());
  }
}

Verdict BucketReducer::finish() {
  const c10::NoGradGuard no_grad;
  {
    const std::lock_guard lock(mutex_);
    open_step();
    while (launched_ < pending_.size()) launch(launched_++);
  }
  thread_.drain();

  Verdict verdict;
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
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    if (verdict.committed() && !buckets_.slice(i).frozen) {
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
