#include "tests/runtime/step_scenario.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <thread>

#include "collectives/compression/reducer/gradient_average.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/cuda/cuda_queue.h"
#include "collectives/threads/thread_communicator.h"
#include "optimizers/elementwise.h"
#include "runtime/step/arrival.h"
#include "tests/reference/reducer.h"
#include "tests/runtime/simulated_device.h"
#include "tests/support/simulator/ranks.h"

namespace thinwire::testing {
namespace {

constexpr int kSize = 2;
constexpr std::int64_t kSteps = 6;
constexpr std::int64_t kPoisoned = 2;
constexpr std::int64_t kFrozenFrom = 4;  // the last parameter is
constexpr std::size_t kFrozen = 3;

std::vector<Parameter> make_parameters() {
  std::vector<Parameter> parameters;
  for (const auto& [name, shape] : std::vector<std::pair<std::string, std::vector<std::int64_t>>>{
           {"a", {8, 8}}, {"b", {16, 4}}, {"c", {10}}, {"d", {4, 20}}}) {
    parameters.push_back({name, at::zeros(shape).set_requires_grad(true)});
  }
  return parameters;
}

CompressionOptions compression_of(std::uint64_t seed) {
  const std::uint64_t kind = seed % kStepScenarioKinds;
  if (kind == 0) return {Sign{16}, {FeedbackKind::error_feedback}, ExchangeKind::two_stage};
  if (kind == 1) return {};
  if (kind == 3) return {Sign{16}, {FeedbackKind::econtrol, 0.1, 0.5}, ExchangeKind::two_stage};
  return {PowerSgd{.matrix_approximation_rank = 1}};
}

// A rank's gradient of parameter `place` in a step.
void write_gradient(float* to, std::int64_t count, std::int64_t step, int rank, std::size_t place) {
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = std::sin(static_cast<float>(1 + step * 31 + rank * 7 + i) + static_cast<float>(place));
  }
  if (step >= kFrozenFrom && place == kFrozen) std::fill_n(to, count, 0.0F);
  if (step == kPoisoned && rank == 1 && place == 1) {
    to[3] = std::numeric_limits<float>::quiet_NaN();
  }
}

// What one rank's run needs; all of it outlives what the simulator has not run.
struct Rank {
  explicit Rank(std::uint64_t seed)
      : buckets(make_parameters(), {.bucket_bytes = 300, .first_bucket_bytes = 200}),
        compression(compression_of(seed)) {}
  GradientBuckets buckets;
  CompressionOptions compression;
  std::unique_ptr<GradientReducer> reducer;
  std::unique_ptr<BeforeReduce> before;
  std::unique_ptr<Optimizer> optimizer;
};

// One step, with gradients written by `backward(slot, parameter)`; empty, or what is wrong.
template <typename Backward>
std::string run_step(Rank& mine, GradientArrival& arrival, std::int64_t step,
                     const Backward& backward) {
  at::Tensor frozen = mine.buckets.parameters()[kFrozen].tensor;
  frozen.set_requires_grad(step < kFrozenFrom);
  for (std::size_t i = mine.buckets.parameters().size(); i-- > 0;) {
    if (i == kFrozen && step >= kFrozenFrom) continue;
    arrival.arriving(i);
    const Slice& slice = mine.buckets.slice(i);
    at::Tensor& gradient = mine.buckets.buckets()[mine.buckets.place(i).bucket].gradient;
    backward(gradient.narrow(0, slice.offset, slice.numel), i);
    arrival.arrived(i);
  }
  const Verdict verdict = arrival.finish();
  if (verdict.committed() == (step == kPoisoned)) {
    return fmt::format("step {}: the verdict is {}", step,
                       verdict.non_finite.value_or("to commit"));
  }
  if (!verdict.committed()) return {};
  for (Bucket& bucket : mine.buckets.buckets()) {
    mine.optimizer->after_reduce(bucket, {.lr = 0.5, .committed_step = step});
  }
  return {};
}

std::vector<at::Tensor> weights_of(const Rank& rank) {
  std::vector<at::Tensor> weights;
  for (const Bucket& bucket : rank.buckets.buckets()) weights.push_back(bucket.weights.clone());
  return weights;
}

// A copy of the reducer's state.
std::vector<at::Tensor> state_of(Rank& rank) {
  struct Copies final : StateVisitor {
    void tensor(const StateEntry& entry) override { all.push_back(entry.tensor.clone()); }
    void counter(const std::string&, std::int64_t&) override {}
    std::vector<at::Tensor> all;
  } copies;
  for (const Bucket& bucket : rank.buckets.buckets()) {
    rank.reducer->visit(bucket, copies);
    if (rank.before) rank.before->visit(bucket, copies);
  }
  return copies.all;
}

bool same(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(a[i].const_data_ptr(), b[i].const_data_ptr(), a[i].nbytes()) != 0) return false;
  }
  return true;
}

struct Expected {
  std::vector<std::vector<at::Tensor>> weights;  // after each step
  std::vector<std::vector<at::Tensor>> states;   // of each rank, at the end
};

// As threads have it in plain code (PowerSGD: with host kernels).
Expected expected_results(std::uint64_t seed) {
  Expected expected;
  expected.states.resize(kSize);
  auto group = make_thread_group(kSize);
  const auto train = [&](Communicator& communicator) {
    Rank mine(seed);
    CompressionOptions plain = mine.compression;
    const double momentum = std::exchange(plain.feedback.momentum, 0);
    mine.reducer =
        seed % kStepScenarioKinds == 2 ? make_reducer(plain) : reference::make_reducer(plain);
    if (momentum > 0) {
      mine.before = std::make_unique<GradientAverage>(*mine.reducer, momentum, ReducerDevice{});
    }
    mine.optimizer =
        std::make_unique<Sgd>(mine.buckets.buckets(), SgdOptions{.momentum = 0.5}, GroupRules{});
    StepTransaction transaction(mine.buckets.buckets(), *mine.reducer, communicator,
                                {.before = mine.before.get()});
    GradientArrival arrival(mine.buckets, transaction, Counting::declared);
    const int rank = communicator.rank();
    for (std::int64_t step = 0; step < kSteps; ++step) {
      run_step(mine, arrival, step, [&](const at::Tensor& slot, std::size_t place) {
        write_gradient(slot.data_ptr<float>(), slot.numel(), step, rank, place);
      });
      if (rank == 0) expected.weights.push_back(weights_of(mine));
    }
    expected.states[static_cast<std::size_t>(rank)] = state_of(mine);
  };
  // Not run_ranks: it asks libtorch for threads, which a forked process has no more.
  std::vector<std::thread> threads;
  for (auto& communicator : group) threads.emplace_back([&] { train(*communicator); });
  for (auto& thread : threads) thread.join();
  return expected;
}

}  // namespace

ScenarioResult step_scenario(std::uint64_t seed, const std::optional<WaitSite>& ignored) {
  const auto expected = expected_results(seed);
  std::vector<std::unique_ptr<Rank>> all;
  for (int rank = 0; rank < kSize; ++rank) all.push_back(std::make_unique<Rank>(seed));
  auto group = make_thread_group(kSize);
  Simulator simulator({.devices = kSize, .seed = seed});
  const KernelsOn kernels(simulator);
  if (ignored) simulator.ignore_wait(*ignored);
  ScenarioResult result;
  std::mutex mutex;
  const auto errors = run_on_devices(simulator, kSize, {}, [&](const DeviceRank& self) {
    const auto place = static_cast<std::size_t>(self.rank());
    Rank& mine = *all[place];
    const CudaApi& cuda = self.simulator.cuda();
    const Stream compute_stream(cuda);
    const std::shared_ptr<Queue> compute = make_cuda_queue(cuda, compute_stream.get());
    const std::shared_ptr<Queue> communication =
        make_cuda_queue(cuda, self.stream, [&] { self.communicator.poll(); });
    Reduction reduction = make_reduction(mine.compression, kernels.reducer_launch(communication));
    mine.reducer = std::move(reduction.reducer);
    mine.before = std::move(reduction.before);
    mine.optimizer = std::make_unique<Sgd>(mine.buckets.buckets(), SgdOptions{.momentum = 0.5},
                                           GroupRules{}, kernels.optimizer_device(compute));
    // Its memory is the simulator's, which it must not outlive.
    struct Reset {
      ~Reset() {
        rank.before.reset();
        rank.reducer.reset();
        rank.optimizer.reset();
      }
      Rank& rank;
    } const reset{mine};
    const GradientPath path{self.communicator, *compute, *communication};
    StepTransaction transaction(mine.buckets.buckets(), *mine.reducer, *group[place],
                                {.before = mine.before.get(), .path = &path});
    GradientArrival arrival(mine.buckets, transaction, Counting::declared);
    for (std::int64_t step = 0; step < kSteps; ++step) {
      std::string problem =
          run_step(mine, arrival, step, [&](const at::Tensor& slot, std::size_t parameter) {
            auto* to = slot.data_ptr<float>();
            self.simulator.enqueue_kernel(compute_stream.get(), [to, count = slot.numel(), step,
                                                                 rank = self.rank(), parameter] {
              write_gradient(to, count, step, rank, parameter);
            });
          });
      // Forward of the next step reads the weights behind the optimizer.
      cuda_check(cuda, cuda.stream_synchronize(compute_stream.get()), "waiting for the weights");
      if (problem.empty() &&
          !same(weights_of(mine), expected.weights[static_cast<std::size_t>(step)])) {
        problem = fmt::format("rank {}: the weights after step {} are not those of threads",
                              self.rank(), step);
      }
      if (problem.empty()) continue;
      const std::lock_guard lock(mutex);
      result.problems.push_back(problem);
    }
    // The host reads what the visit shows at once.
    const bool right = same(state_of(mine), expected.states[place]);
    cuda_check(cuda, cuda.stream_synchronize(self.stream), "waiting for the end");
    if (right) return;
    const std::lock_guard lock(mutex);
    result.problems.push_back(fmt::format("rank {}: the state is not that of threads", place));
  });
  for (const std::string& error : errors) {
    if (!error.empty()) result.problems.push_back(error);
  }
  for (const std::string& failure : simulator.failures()) result.problems.push_back(failure);
  result.sites = simulator.wait_sites();
  return result;
}

}  // namespace thinwire::testing
