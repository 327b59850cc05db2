// What PowerSGD keeps to, whatever the gradients are.
#include <gtest/gtest.h>

#include <mutex>

#include "collectives/base/error.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/power_sgd_support.h"

namespace thinwire {
namespace {

using testing::make_bucket;
using testing::matrix_of;
using testing::Overwrite;
using testing::power_sgd;
using testing::random_gradient;
using testing::reduce;
using testing::slice_of;
using testing::state_of;

constexpr auto kNone = FeedbackKind::none;

double length(const at::Tensor& tensor) {
  return tensor.to(at::kDouble).norm().item<double>();
}

// A matrix of independent draws in (-1, 1).
at::Tensor draws(std::int64_t rows, std::int64_t columns, std::uint64_t key) {
  at::Tensor matrix = at::empty({rows, columns}, at::kDouble);
  const Philox philox(11, PhiloxStream::synthetic_data, key);
  for (std::int64_t i = 0; i < matrix.numel(); ++i) {
    matrix.data_ptr<double>()[i] = 2 * philox.uniform(static_cast<std::uint64_t>(i)) - 1;
  }
  return matrix;
}

// One rank's run on a matrix of its own.
struct Alone {
  Alone(std::int64_t rows, std::int64_t columns, const CompressionOptions& options,
        at::ScalarType dtype = at::kDouble)
      : bucket(make_bucket({{rows, columns}}, dtype)), reducer(make_reducer(options)) {
    reducer->prepare(bucket, 0, 1);
  }
  // The estimate of a step with this gradient.
  at::Tensor reduce(const at::Tensor& gradient) {
    at::Tensor flat = at::zeros_like(bucket.gradient);
    slice_of(flat, bucket.slices[0]).copy_(gradient.flatten());
    testing::reduce(*reducer, bucket, *group.front(), flat, {.step = step++, .seed = 3});
    return matrix_of(bucket.gradient, bucket.slices[0]).clone();
  }
  at::Tensor residual() { return state_of(*reducer, bucket, "residual/p0"); }

  Bucket bucket;
  std::unique_ptr<GradientReducer> reducer;
  std::vector<std::unique_ptr<Communicator>> group = make_thread_group(1);
  std::int64_t step = 0;
};

class PowerSgdRanks : public ::testing::TestWithParam<int> {};

// Ranks differ, but their mean has rank 3.
TEST_P(PowerSgdRanks, AMeanOfNoHigherRankArrivesExactly) {
  const int size = GetParam();
  const at::Tensor low = draws(60, 3, 0).mm(draws(3, 45, 1));
  const at::Tensor apart = draws(60, 45, 2);
  run_ranks(size, [&](auto communicator) {
    Bucket bucket = make_bucket({{60, 45}}, at::kDouble);
    const auto reducer = make_reducer(power_sgd(3));
    reducer->prepare(bucket, communicator->rank(), size);
    const at::Tensor gradient = low + apart * (communicator->rank() - 0.5 * (size - 1));
    at::Tensor flat = at::zeros({bucket.numel()}, at::kDouble);
    slice_of(flat, bucket.slices[0]).copy_(gradient.flatten());
    reduce(*reducer, bucket, *communicator, flat, {});
    EXPECT_LT(length(matrix_of(bucket.gradient, bucket.slices[0]) - low), 1e-12 * length(low));
  });
}

// sum of estimates + mean of residuals = sum of mean gradients.
void expect_nothing_is_lost_in_500_steps(const CompressionOptions& options, int size) {
  std::mutex mutex;
  at::Tensor residuals;
  at::Tensor estimates;
  at::Tensor gradients;
  run_ranks(size, [&](auto communicator) {
    const int rank = communicator->rank();
    Bucket bucket = make_bucket(testing::mixed_shapes(), at::kDouble);
    const auto reducer = make_reducer(options);
    reducer->prepare(bucket, rank, size);
    at::Tensor sent = at::zeros({bucket.numel()}, at::kDouble);
    at::Tensor own = at::zeros({bucket.numel()}, at::kDouble);
    for (int step = 0; step < 500; ++step) {
      at::Tensor gradient = random_gradient(bucket, step, rank);
      if (step % 50 == 7) slice_of(gradient, bucket.slices[6]).zero_();
      own.add_(gradient);
      reduce(*reducer, bucket, *communicator, gradient, {.step = step, .seed = 1});
      sent.add_(bucket.gradient);
    }
    at::Tensor residual = at::zeros({bucket.numel()}, at::kDouble);
    for (const Slice& slice : bucket.slices) {
      const at::Tensor kept = state_of(*reducer, bucket, "residual/" + slice.name);
      if (kept.defined()) slice_of(residual, slice).copy_(kept.flatten());
    }
    const std::lock_guard lock(mutex);
    residuals = residuals.defined() ? residuals + residual / size : residual / size;
    gradients = gradients.defined() ? gradients + own / size : own / size;
    if (estimates.defined()) {
      EXPECT_TRUE(estimates.equal(sent)) << "ranks have different estimates";
    }
    estimates = sent;
  });
  EXPECT_LT((estimates + residuals - gradients).abs().max().item<double>(), 1e-10);
  EXPECT_LT(length(residuals), length(estimates) / 2);
}

TEST_P(PowerSgdRanks, NothingIsLostIn500Steps) {
  expect_nothing_is_lost_in_500_steps(power_sgd(2), GetParam());
}

TEST_P(PowerSgdRanks, NothingIsLostIn500ColdSteps) {
  CompressionOptions cold = power_sgd(3);
  std::get<PowerSgd>(cold.codec).warm_start = false;
  expect_nothing_is_lost_in_500_steps(cold, GetParam());
}

// As one rank with the mean gradient, as long as rounding has not grown.
TEST_P(PowerSgdRanks, IsLinear) {
  const int size = GetParam();
  const std::vector<std::vector<std::int64_t>> shapes = {{40, 30}, {7}, {64, 24}};
  std::vector<at::Tensor> expected;
  run_ranks(1, [&](auto communicator) {
    Bucket bucket = make_bucket(shapes, at::kDouble);
    const auto reducer = make_reducer(power_sgd(2));
    reducer->prepare(bucket, 0, 1);
    for (int step = 0; step < 20; ++step) {
      at::Tensor mean = random_gradient(bucket, step, 0);
      for (int rank = 1; rank < size; ++rank) mean += random_gradient(bucket, step, rank);
      reduce(*reducer, bucket, *communicator, mean / size, {.step = step, .seed = 1});
      expected.push_back(bucket.gradient.clone());
    }
  });
  run_ranks(size, [&](auto communicator) {
    Bucket bucket = make_bucket(shapes, at::kDouble);
    const auto reducer = make_reducer(power_sgd(2));
    reducer->prepare(bucket, communicator->rank(), size);
    for (int step = 0; step < 20; ++step) {
      const at::Tensor gradient = random_gradient(bucket, step, communicator->rank());
      reduce(*reducer, bucket, *communicator, gradient, {.step = step, .seed = 1});
      const at::Tensor& exact = expected[static_cast<std::size_t>(step)];
      ASSERT_LT(length(bucket.gradient - exact), 1e-10 * length(exact)) << "step " << step;
    }
  });
}

// The estimate is the projection of the mean on P's columns, and a residual what that leaves.
TEST_P(PowerSgdRanks, EstimatesAreProjections) {
  const int size = GetParam();
  std::mutex mutex;
  at::Tensor mean;  // of M_i
  at::Tensor estimate;
  run_ranks(size, [&](auto communicator) {
    Bucket bucket = make_bucket({{40, 30}}, at::kDouble);
    const auto reducer = make_reducer(power_sgd(4));
    reducer->prepare(bucket, communicator->rank(), size);
    for (int step = 0; step < 5; ++step) {
      const at::Tensor before = state_of(*reducer, bucket, "residual/p0");
      const at::Tensor gradient = random_gradient(bucket, step, communicator->rank());
      reduce(*reducer, bucket, *communicator, gradient, {.step = step, .seed = 1});
      const at::Tensor sent = matrix_of(bucket.gradient, bucket.slices[0]);
      const at::Tensor kept = state_of(*reducer, bucket, "residual/p0");
      EXPECT_LT(length(sent.t().mm(kept)), 1e-12 * length(sent) * length(kept));
      if (step < 4) continue;
      const std::lock_guard lock(mutex);
      const at::Tensor m = (matrix_of(gradient, bucket.slices[0]) + before) / size;
      mean = mean.defined() ? mean + m : m;
      estimate = sent.clone();
    }
  });
  // P's columns span the estimate's: take them from its singular vectors.
  const auto [u, s, v] = at::svd(estimate);
  const at::Tensor p = u.narrow(1, 0, 4);
  EXPECT_LT(length(estimate - p.mm(p.t().mm(mean))), 1e-11 * length(mean));
  EXPECT_LT(length(estimate), length(mean));
  EXPECT_GT(s[3].item<double>(), 1e-3 * s[0].item<double>());
}

INSTANTIATE_TEST_SUITE_P(Ranks, PowerSgdRanks, ::testing::Values(1, 2, 3, 4, 7));

// A power iteration: warm start on a matrix that stays converges to the best of that rank.
TEST(PowerSgd, ConvergesToTheSingularValueOptimum) {
  const at::Tensor matrix = draws(30, 3, 0).mm(draws(3, 20, 1));
  const auto singular = std::get<1>(at::svd(matrix));
  Alone warm(30, 20, power_sgd(2, kNone));
  double last = length(matrix);
  for (int step = 0; step < 400; ++step) {
    const double distance = length(matrix - warm.reduce(matrix));
    EXPECT_LE(distance, last * (1 + 1e-12));
    last = distance;
  }
  EXPECT_NEAR(last, singular[2].item<double>(), 1e-9);
  // A cold one stays above it.
  Alone cold(30, 20, {PowerSgd{.matrix_approximation_rank = 2, .warm_start = false}, {kNone}});
  for (int step = 0; step < 100; ++step) {
    EXPECT_GT(length(matrix - cold.reduce(matrix)), singular[2].item<double>() * (1 + 1e-6));
  }
}

// A factor of two to a power goes through every step without a rounding.
TEST(PowerSgd, ScalesWithTheGradient) {
  for (const double scale : {0x1p-100, 0x1p+60}) {
    Alone plain(40, 30, power_sgd(2), at::kFloat);
    Alone scaled(40, 30, power_sgd(2), at::kFloat);
    for (int step = 0; step < 10; ++step) {
      const at::Tensor gradient = draws(40, 30, static_cast<std::uint64_t>(step));
      EXPECT_TRUE(scaled.reduce(gradient * scale).equal(plain.reduce(gradient) * scale));
    }
  }
}

// The hook's one pass of Gram and Schmidt's process is 14 % off here with rank 2.
TEST(PowerSgd, ARankOneGradientArrivesAtAnyRank) {
  for (const std::int64_t rank : {1, 2, 4}) {
    for (const auto feedback : {FeedbackKind::error_feedback, kNone}) {
      Alone run(64, 32, power_sgd(rank, feedback), at::kFloat);
      const at::Tensor gradient = draws(64, 1, 0).mm(draws(1, 32, 1));
      for (int step = 0; step < 6; ++step) {
        EXPECT_LT(length(run.reduce(gradient) - gradient), 1e-6 * length(gradient))
            << "rank " << rank;
      }
    }
  }
}

// The hook is NaN for ever, or silent for ever, after one gradient of zeros.
TEST(PowerSgd, AGradientThatWasZeroOnceIsHeardAgain) {
  for (const std::int64_t rank : {1, 2, 4}) {
    Alone run(64, 32, power_sgd(rank), at::kFloat);
    const at::Tensor zeros = at::zeros({64, 32});
    for (const int at : {0, 5}) {
      for (int step = 0; step < at; ++step) run.reduce(draws(64, 32, 1));
      Overwrite drained({{"residual/p0", zeros}});
      run.reducer->visit(run.bucket, drained);
      EXPECT_EQ(length(run.reduce(zeros)), 0);
      const at::Tensor gradient = draws(64, 32, 2);
      const at::Tensor estimate = run.reduce(gradient);
      EXPECT_GT(length(estimate), 0.05 * length(gradient));
      // All columns are back: the estimate has full rank.
      const auto singular = std::get<1>(at::svd(estimate));
      EXPECT_GT(singular[rank - 1].item<float>(), 0.1 * singular[0].item<float>());
    }
  }
}

// One column of the factor collapsed; the others stay what they were.
TEST(PowerSgd, ADeadColumnIsDrawnAnewAlikeOnAllRanks) {
  run_ranks(2, [](auto communicator) {
    Bucket bucket = make_bucket({{40, 30}});
    const auto reducer = make_reducer(power_sgd(3, kNone));
    reducer->prepare(bucket, communicator->rank(), 2);
    at::Tensor factor = draws(3, 30, 5).to(at::kFloat);
    factor[1] = factor[0] * 3;  // leaves nothing once freed of column 0
    Overwrite overwrite({{"factor/p0", factor}});
    reducer->visit(bucket, overwrite);
    const at::Tensor gradient = random_gradient(bucket, 0, 0);
    reduce(*reducer, bucket, *communicator, gradient, {.step = 9, .seed = 1});
    const at::Tensor estimate = matrix_of(bucket.gradient, bucket.slices[0]).to(at::kDouble);
    const auto singular = std::get<1>(at::svd(estimate));
    EXPECT_GT(singular[2].item<double>(), 0.05 * singular[0].item<double>());
    // The estimate keeps what the two live columns alone would have carried.
    const at::Tensor m = matrix_of(gradient, bucket.slices[0]).to(at::kDouble);
    const at::Tensor live = at::stack({factor[0], factor[2]}).to(at::kDouble);
    const at::Tensor through = m.mm(live.t());
    const auto [u, s, v] = at::svd(through);
    EXPECT_LT(length(u.t().mm(m - estimate)), 1e-5 * length(m));
  });
}

// The hook's residual, of the global estimate, grows with every step where ranks differ for ever.
TEST(PowerSgd, TheResidualStaysBoundedWhereRanksDifferForEver) {
  run_ranks(4, [](auto communicator) {
    const int rank = communicator->rank();
    Bucket bucket = make_bucket({{40, 30}}, at::kDouble);
    const auto reducer = make_reducer(power_sgd(2));
    reducer->prepare(bucket, rank, 4);
    const at::Tensor offset = draws(40, 30, 77) * (10 * (rank - 1.5));
    at::Tensor global = at::zeros({40, 30}, at::kDouble);
    std::map<int, double> local_norm;
    std::map<int, double> global_norm;
    for (int step = 1; step <= 400; ++step) {
      at::Tensor gradient = random_gradient(bucket, step, rank);
      matrix_of(gradient, bucket.slices[0]) += offset;
      reduce(*reducer, bucket, *communicator, gradient, {.step = step, .seed = 1});
      global +=
          matrix_of(gradient, bucket.slices[0]) - matrix_of(bucket.gradient, bucket.slices[0]);
      local_norm[step] = length(state_of(*reducer, bucket, "residual/p0"));
      global_norm[step] = length(global);
    }
    EXPECT_LT(local_norm[400], 2 * local_norm[100]);
    EXPECT_GT(global_norm[400], 3 * global_norm[100]);
  });
}

// Convolutional ResNet18 for CIFAR-10, 11,173,962 parameters.
std::vector<std::vector<std::int64_t>> resnet18() {
  std::vector<std::vector<std::int64_t>> shapes;
  const auto convolution = [&](std::int64_t out, std::int64_t in, std::int64_t kernel) {
    shapes.push_back({out, in, kernel, kernel});
    shapes.push_back({out});  // batch norm
    shapes.push_back({out});
  };
  convolution(64, 3, 3);
  std::int64_t in = 64;
  for (const std::int64_t out : {64, 64, 128, 128, 256, 256, 512, 512}) {
    convolution(out, in, 3);
    convolution(out, out, 3);
    if (in != out) convolution(out, in, 1);
    in = out;
  }
  shapes.push_back({10, 512});
  shapes.push_back({10});
  return shapes;
}

TEST(PowerSgd, ResNet18SendsWhatIsPublished) {
  const Bucket bucket = make_bucket(resnet18());
  EXPECT_EQ(bucket.parameter_numel(), 11'173'962);
  for (const auto& [rank, floats] :
       std::map<std::int64_t, std::int64_t>{{1, 45'935}, {2, 82'260}, {4, 154'910}}) {
    // Whatever has two dimensions is compressed.
    const auto reducer =
        make_reducer({PowerSgd{.matrix_approximation_rank = rank, .min_compression_rate = 1e-9}});
    std::int64_t bytes = 0;
    for (const SlicePlan& plan : reducer->plan(bucket)) {
      EXPECT_EQ(plan.compressed, !plan.coding.starts_with("uncompressed"));
      bytes += plan.payload_bytes;
    }
    EXPECT_EQ(bytes, 4 * floats);
  }
}

TEST(PowerSgd, SaysHowEachParameterTravels) {
  const auto plan =
      make_reducer(power_sgd(4))->plan(make_bucket({{64, 32}, {7}, {8, 8}, {3, 500}}));
  EXPECT_EQ(plan[0].coding, "low rank 4");
  EXPECT_EQ(plan[0].payload_bytes, (64 + 32) * 4 * 4);
  EXPECT_EQ(plan[1].coding, "uncompressed: a vector");
  EXPECT_EQ(plan[1].payload_bytes, 7 * 4);
  EXPECT_EQ(plan[2].coding, "uncompressed: too small for rank 4 at min_compression_rate 2");
  EXPECT_EQ(plan[3].coding, "uncompressed: too small for rank 4 at min_compression_rate 2");
}

TEST(PowerSgd, RefusesOptionsThatCannotBe) {
  EXPECT_THROW(make_reducer({PowerSgd{.matrix_approximation_rank = 0}}), UsageError);
  EXPECT_THROW(make_reducer({PowerSgd{.min_compression_rate = 0}}), UsageError);
  EXPECT_THROW(make_reducer({PowerSgd{.orthogonalization_epsilon = 0}}), UsageError);
  EXPECT_THROW(make_reducer({PowerSgd{}, {FeedbackKind::econtrol}}), UsageError);
}

}  // namespace
}  // namespace thinwire
