// PowerSGD against recorded runs of PyTorch's powerSGD_hook (tests/golden/powersgd).
#include <gtest/gtest.h>

#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "collectives/base/error.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/power_sgd_support.h"

namespace thinwire {
namespace {

using nlohmann::json;
using testing::make_bucket;
using testing::matrix_of;
using testing::Overwrite;
using testing::slice_of;

const std::vector<std::vector<std::int64_t>> kShapes = {{64, 32}, {10, 64}, {16, 8, 3, 3},
                                                        {33},     {10},     {48, 48}};
constexpr std::size_t kCompressed[] = {0, 1, 2, 5};
constexpr std::size_t kDense[] = {3, 4};
constexpr int kSteps = 20;
constexpr int kDenseCalls = 2;  // calls of the hook before step 1

json golden(const std::string& name) {
  std::ifstream file(std::string(THINWIRE_GOLDEN) + "/powersgd/" + name);
  check(file.good(), "the golden file is there");
  return json::parse(file);
}

// float32, little-endian, base64.
at::Tensor floats(const std::string& text, std::vector<std::int64_t> shape) {
  const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  std::uint32_t bits = 0;
  int held = 0;
  for (const char letter : text) {
    if (letter == '=') break;
    bits = bits << 6 | static_cast<std::uint32_t>(alphabet.find(letter));
    held += 6;
    if (held < 8) continue;
    held -= 8;
    bytes.push_back(static_cast<char>(bits >> held & 0xff));
  }
  at::Tensor tensor = at::empty(shape);
  check_equal(bytes.size(), tensor.nbytes(), "bytes of a golden tensor");
  std::memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

std::uint32_t hash(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t i) {
  std::uint32_t x =
      a * 0x9E3779B1u + b * 0x85EBCA77u + c * 0xC2B2AE3Du + i * 0x27D4EB2Fu + 0x165667B1u;
  x ^= x >> 15;
  x *= 0x2C1B3C6Du;
  x ^= x >> 12;
  x *= 0x297A2D39u;
  x ^= x >> 15;
  return x;
}

int signed_bits(std::uint32_t word, int bits) {
  return static_cast<int>(word >> (32 - bits)) - (1 << (bits - 1));
}

// The gradient of step k = 1, 2, ...: a persistent part, one per rank, and noise.
at::Tensor recorded_gradient(const Bucket& bucket, int step, int rank) {
  const auto call = static_cast<std::uint32_t>(step - 1 + kDenseCalls);
  const auto r = static_cast<std::uint32_t>(rank);
  at::Tensor flat = at::zeros({bucket.numel()});
  for (std::uint32_t c = 0; c < bucket.slices.size(); ++c) {
    const Slice& slice = bucket.slices[c];
    for (std::uint32_t i = 0; i < slice.numel; ++i) {
      const int sum = signed_bits(hash(0, 0, c, i), 11) + signed_bits(hash(0, r + 1, c, i), 9) +
                      signed_bits(hash(call + 1, r + 1, c, i), 10);
      flat.data_ptr<float>()[slice.offset + i] = static_cast<float>(sum) / 1024;
    }
  }
  return flat;
}

double relative_distance(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor exact = b.to(at::kDouble);
  return ((a.to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

struct Recorded {
  json run;      // of one number of ranks and rank
  json variant;  // of it
  std::int64_t rank;

  at::Tensor left(int step, std::size_t i) const {
    return floats(full(step).at("P").at(std::to_string(i)), {kShapes[i][0], rank});
  }
  at::Tensor right(int step, std::size_t i) const {
    return floats(full(step).at("Q").at(std::to_string(i)), {columns(i), rank});
  }
  at::Tensor average(int step, std::size_t i) const {
    return left(step, i).to(at::kDouble).mm(right(step, i).to(at::kDouble).t());
  }
  const json& full(int step) const { return variant.at("full").at(std::to_string(step)); }
  static std::int64_t columns(std::size_t i) {
    std::int64_t numel = 1;
    for (const auto extent : kShapes[i]) numel *= extent;
    return numel / kShapes[i][0];
  }
};

Recorded recorded(int ranks, std::int64_t rank, const std::string& variant) {
  Recorded all;
  all.run = golden("psgd_n" + std::to_string(ranks) + "_r" + std::to_string(rank) + ".json");
  all.variant = all.run.at("variants").at(variant);
  all.rank = rank;
  return all;
}

TEST(PowerSgdGolden, GradientsAreThoseThatWereRecorded) {
  EXPECT_EQ(hash(0, 0, 0, 0), 0x54b7eb53u);
  EXPECT_EQ(hash(22, 4, 5, 2303), 0x7d201701u);
  const Bucket bucket = make_bucket(kShapes);
  const at::Tensor g = recorded_gradient(bucket, 1, 1) * 1024;  // call 2
  EXPECT_EQ(slice_of(g, bucket.slices[1])[0].item<float>(), 362);
  EXPECT_EQ(slice_of(g, bucket.slices[1]).sum().item<float>(), -6144);
}

class FreeRun : public ::testing::TestWithParam<std::tuple<int, std::int64_t, bool, bool>> {};

TEST_P(FreeRun, FollowsTheHook) {
  const auto [size, rank, warm, feedback] = GetParam();
  const std::string variant =
      std::string("warm") + (warm ? "1" : "0") + (feedback ? "_ef1" : "_ef0");
  const Recorded hook = recorded(size, rank, variant);
  const json drawn = golden("q_init.json").at("Q").at(std::to_string(rank));
  const json local = golden("local_error.json").at("err_norm");
  // Warm start with feedback amplifies rounding: the hook itself is that far from float64.
  const auto tolerance = [&](int step) {
    if (!warm || !feedback) return 3e-6;
    return step <= 5 ? 4e-6 : step <= 10 ? 2e-5 : 1e-3;
  };
  run_ranks(size, [&](auto communicator) {
    const int me = communicator->rank();
    Bucket bucket = make_bucket(kShapes);
    const auto reducer = make_reducer(
        testing::power_sgd(rank, feedback ? FeedbackKind::error_feedback : FeedbackKind::none));
    reducer->prepare(bucket, me, size);
    for (int step = 1; step <= kSteps; ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      const std::string key = std::to_string(step);
      if (step == 1 || !warm) {
        std::map<std::string, at::Tensor> factors;
        for (const std::size_t i : kCompressed) {
          const at::Tensor q = floats(drawn.at(key).at(std::to_string(i)), {hook.columns(i), rank});
          factors["factor/" + bucket.slices[i].name] = q.t().contiguous();
        }
        Overwrite overwrite(factors);
        reducer->visit(bucket, overwrite);
      }
      testing::reduce(*reducer, bucket, *communicator, recorded_gradient(bucket, step, me),
                      {.step = step});
      for (const std::size_t i : kCompressed) {
        SCOPED_TRACE("tensor " + std::to_string(i));
        const at::Tensor average = matrix_of(bucket.gradient, bucket.slices[i]);
        const double norm = hook.variant.at("norm").at(step - 1).at(i).get<double>();
        EXPECT_NEAR(average.to(at::kDouble).norm().item<double>(), norm, norm * tolerance(step));
        if (hook.variant.at("full").contains(key)) {
          EXPECT_LT(relative_distance(average, hook.average(step, i)), tolerance(step));
        }
        if (!feedback) continue;
        // The residual is local; for one rank it is also the hook's.
        const double kept = testing::state_of(*reducer, bucket, "residual/" + bucket.slices[i].name)
                                .to(at::kDouble)
                                .norm()
                                .item<double>();
        const double close = step <= 15 ? 1e-5 : 1e-4;
        const json& norms =
            local.at("n" + std::to_string(size) + "_r" + std::to_string(rank) + "_" + variant);
        if (norms.contains(key)) {
          const double expected = norms.at(key).at(me).at(i).get<double>();
          EXPECT_NEAR(kept, expected, expected * close);
        }
        if (size == 1) {
          const double expected = hook.variant.at("err_norm").at(step - 1).at(0).at(i);
          EXPECT_NEAR(kept, expected, expected * close);
        }
      }
      for (const std::size_t i : kDense) {
        EXPECT_FALSE(
            testing::state_of(*reducer, bucket, "residual/" + bucket.slices[i].name).defined());
        if (!hook.variant.at("full").contains(key)) continue;
        const at::Tensor exact =
            floats(hook.full(step).at("avg").at(std::to_string(i)), kShapes[i]);
        EXPECT_TRUE(slice_of(bucket.gradient, bucket.slices[i]).equal(exact));
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, FreeRun,
                         ::testing::Combine(::testing::Values(1, 2), ::testing::Values(1, 2, 4),
                                            ::testing::Bool(), ::testing::Bool()));

// Every step from the hook's own residuals and factors.
TEST(PowerSgdGolden, OneStepFromTheRecordedPast) {
  for (const std::int64_t rank : {1, 2, 4}) {
    const Recorded hook = recorded(2, rank, "warm1_ef1");
    const json drawn = golden("q_init.json").at("Q").at(std::to_string(rank)).at("1");
    run_ranks(2, [&](auto communicator) {
      const int me = communicator->rank();
      Bucket bucket = make_bucket(kShapes);
      const auto reducer = make_reducer(testing::power_sgd(rank));
      reducer->prepare(bucket, me, 2);
      at::Tensor errors = at::zeros({bucket.numel()}, at::kDouble);
      for (int step = 1; step <= kSteps; ++step) {
        std::map<std::string, at::Tensor> past;
        for (const std::size_t i : kCompressed) {
          const at::Tensor q = step == 1
                                   ? floats(drawn.at(std::to_string(i)), {hook.columns(i), rank})
                                   : hook.right(step - 1, i);
          past["factor/" + bucket.slices[i].name] = q.t().contiguous();
          past["residual/" + bucket.slices[i].name] = slice_of(errors, bucket.slices[i]);
        }
        Overwrite overwrite(past);
        reducer->visit(bucket, overwrite);
        const at::Tensor gradient = recorded_gradient(bucket, step, me);
        testing::reduce(*reducer, bucket, *communicator, gradient, {.step = step});
        errors += gradient;
        for (const std::size_t i : kCompressed) {
          const at::Tensor average = hook.average(step, i);
          EXPECT_LT(relative_distance(matrix_of(bucket.gradient, bucket.slices[i]), average), 1e-6)
              << "rank " << rank << " step " << step << " tensor " << i;
          matrix_of(errors, bucket.slices[i]) -= average;
        }
      }
    });
  }
}

// Which matrices the hook compresses, and how many elements it sends for them.
TEST(PowerSgdGolden, CompressesTheSameMatrices) {
  for (const json& row : golden("extras.json").at("decisions").at("rows")) {
    const std::vector<double> v = row;
    const auto [rows, columns] = std::pair(std::int64_t(v[0]), std::int64_t(v[1]));
    const auto reducer = make_reducer(
        {PowerSgd{.matrix_approximation_rank = std::int64_t(v[2]), .min_compression_rate = v[3]}});
    const auto plan = reducer->plan(make_bucket({{rows, columns}})).front();
    EXPECT_EQ(plan.compressed, v[5] == 1) << row;
    EXPECT_EQ(plan.payload_bytes, 4 * std::int64_t(v[5] == 1 ? v[7] : v[6])) << row;
  }
}

TEST(PowerSgdGolden, SendsTheSameNumberOfElements) {
  for (const std::int64_t rank : {1, 2, 4}) {
    const std::vector<std::int64_t> messages =
        recorded(1, rank, "warm1_ef1").variant.at("messages");
    std::int64_t elements = 0;
    for (const auto& plan : make_reducer(testing::power_sgd(rank))->plan(make_bucket(kShapes))) {
      elements += plan.payload_bytes / 4;
    }
    EXPECT_EQ(elements, messages[0] + messages[1] + messages[2]);
  }
}

}  // namespace
}  // namespace thinwire
