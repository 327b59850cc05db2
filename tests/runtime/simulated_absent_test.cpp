// Slices without a gradient, frozen slices in dense steps and renewed trackers on simulated
// devices, whose queues run late: the results of threads.
#include <gtest/gtest.h>

#include <cstring>
#include <mutex>

#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/cuda/cuda_queue.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/averaging.h"
#include "tests/compression/support.h"
#include "tests/runtime/simulated_device.h"
#include "tests/support/frozen.h"
#include "tests/support/simulator/ranks.h"

namespace thinwire {
namespace {

using testing::DeviceRank;
using testing::KernelsOn;
using testing::make_bucket;
using testing::random_gradient;
using testing::Simulator;
using testing::Snapshot;

constexpr int kSize = 2;
constexpr std::int64_t kSteps = 9;

std::vector<CompressionOptions> ways() {
  return {{},
          {Sign{16}},
          {TopK{0.1, 64}},
          {Sign{16}, {FeedbackKind::econtrol, 0.1, 0.5}},
          {TopK{0.1, 64}, {FeedbackKind::econtrol}},
          {Cast{Half::fp16}},
          {PowerSgd{.matrix_approximation_rank = 1}}};
}

Bucket bucket_for_tests() {
  return make_bucket({{8, 8}, {5}, {16, 4}, {4, 20}});
}

// What a step is, and the gradient with which a rank begins it.
StepContext prepare_step(Bucket& bucket, std::int64_t step) {
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    bucket.slices[i].absent = false;
    resting::set_frozen(bucket, i, step >= 5 && step < 8 && i == 2);
  }
  // In each of them some trackers' mean is formed anew.
  return {.step = 16 * step,
          .seed = 1,
          .transmission = step == 3 || step == 6 ? Transmission::dense : Transmission::compressed};
}
bool is_absent(std::int64_t step, std::size_t slice) {
  return step % 2 == 1 && (static_cast<std::size_t>(step) + slice) % 3 != 0;
}
at::Tensor gradient_of(const Bucket& bucket, std::int64_t step, int rank) {
  at::Tensor gradient = random_gradient(bucket, step, rank);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (bucket.layout.rests(i) || is_absent(step, i))
      gradient.narrow(0, slice.offset, slice.numel).zero_();
  }
  return gradient;
}
void finish_step(Bucket& bucket, GradientReducer& reducer, std::int64_t step) {
  if (step == 4) return reducer.rollback(bucket);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    bucket.slices[i].absent = is_absent(step, i);
  }
  reducer.commit(bucket);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

struct Results {
  std::vector<at::Tensor> estimates;
  Snapshot state;
};

TEST(SimulatedAbsence, HasTheResultsOfThreads) {
  for (const CompressionOptions& options : ways()) {
    Results expected[kSize];
    run_ranks(kSize, [&](auto communicator) {
      Results& mine = expected[communicator->rank()];
      Bucket bucket = bucket_for_tests();
      const auto reducer = testing::with_averages(
          options, [](const CompressionOptions& o) { return make_reducer(o); });
      reducer->prepare(bucket, communicator->rank(), kSize);
      for (std::int64_t step = 0; step < kSteps; ++step) {
        const StepContext context = prepare_step(bucket, step);
        bucket.gradient.copy_(gradient_of(bucket, step, communicator->rank()));
        reducer->stage(bucket, *communicator, context);
        reducer->settle(*communicator);
        ASSERT_FALSE(reducer->non_finite(bucket));
        finish_step(bucket, *reducer, step);
        mine.estimates.push_back(bucket.gradient.clone());
      }
      reducer->visit(bucket, mine.state);
    });
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      Simulator simulator({.devices = kSize, .seed = seed});
      const KernelsOn kernels(simulator);
      std::mutex mutex;
      const auto errors = run_on_devices(simulator, kSize, {}, [&](const DeviceRank& self) {
        const std::shared_ptr<Queue> queue =
            make_cuda_queue(self.simulator.cuda(), self.stream, [&] { self.communicator.poll(); });
        Bucket bucket = bucket_for_tests();
        const ReducerDevice launch = kernels.reducer_launch(queue);
        const auto reducer = testing::with_averages(
            options, [&](const CompressionOptions& o) { return make_reducer(o, launch); }, launch);
        reducer->prepare(bucket, self.rank(), kSize);
        const Results& want = expected[self.rank()];
        for (std::int64_t step = 0; step < kSteps; ++step) {
          const StepContext context = prepare_step(bucket, step);
          const at::Tensor gradient = gradient_of(bucket, step, self.rank());
          queue->copy(bucket.gradient.data_ptr(), gradient.const_data_ptr(), gradient.nbytes());
          reducer->stage(bucket, self.communicator, context);
          reducer->settle(self.communicator);
          const bool bad = reducer->non_finite(bucket).has_value();
          finish_step(bucket, *reducer, step);
          queue->synchronize(Clock::now() + std::chrono::seconds(30));
          const std::lock_guard lock(mutex);
          EXPECT_FALSE(bad);
          EXPECT_TRUE(step == 4 ||
                      same_bits(bucket.gradient, want.estimates[static_cast<std::size_t>(step)]))
              << "codec " << options.codec.index() << ", step " << step << ", seed " << seed;
        }
        Snapshot state;
        reducer->visit(bucket, state);
        const std::lock_guard lock(mutex);
        EXPECT_TRUE(state == want.state) << "codec " << options.codec.index() << ", seed " << seed;
      });
      for (const std::string& error : errors) EXPECT_EQ(error, "");
      EXPECT_TRUE(simulator.failures().empty());
    }
  }
}

}  // namespace
}  // namespace thinwire
