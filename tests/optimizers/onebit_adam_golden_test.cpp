// The recorded trajectories of DeepSpeed's 1-bit Adam (tests/golden/deepspeed), by our optimizer
// with an exchange of that convention: one RMS scale for a whole tensor, one for each server's
// part, nothing corrected. Of its five tensors d is the one that needs no padding there.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "optimizers/onebit_adam.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

constexpr std::uint32_t kTensor = 3;  // d
constexpr std::int64_t kSize = 64 * 16;

std::uint32_t hash(std::uint32_t seed, std::uint32_t step, std::uint32_t rank, std::uint32_t tensor,
                   std::uint32_t index) {
  std::uint32_t x =
      seed + step * 2654435761u + rank * 2246822519u + tensor * 3266489917u + index * 668265263u;
  x ^= x >> 16;
  x *= 2246822507u;
  x ^= x >> 13;
  x *= 3266489909u;
  x ^= x >> 16;
  return x;
}

float draw(std::uint32_t bits, std::uint32_t modulus) {
  return static_cast<float>(bits % modulus) - static_cast<float>(modulus / 2);
}

std::vector<float> gradient(std::uint32_t seed, std::uint32_t step, std::uint32_t rank) {
  std::vector<float> values;
  for (std::uint32_t i = 0; i < kSize; ++i) {
    const float sum = draw(hash(seed, step, rank, kTensor, i), 2001) +
                      draw(hash(seed, 0, 255, kTensor, i), 513) +
                      64 * (static_cast<float>(rank) - 1);
    values.push_back(sum / (1024 * 8));
  }
  return values;
}

std::string hash_of_signs(const float* values, std::int64_t count) {
  std::uint32_t h = 2166136261u;
  for (std::int64_t i = 0; i < count; i += 8) {
    std::uint32_t byte = 0;
    for (std::int64_t k = 0; k < 8; ++k) byte = 2 * byte + (values[i + k] >= 0 ? 1 : 0);
    h = (h ^ byte) * 16777619u;
  }
  return fmt::format("{:08x}", h);
}

float rms(const float* values, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  return static_cast<float>(std::sqrt(sum / static_cast<double>(count)));
}

// values := scale sign(values), error := what that leaves out; the scale.
float compress(float* values, float* error, std::int64_t count) {
  const float scale = rms(values, count);
  for (std::int64_t i = 0; i < count; ++i) {
    const float decoded = values[i] >= 0 ? scale : -scale;
    error[i] = values[i] - decoded;
    values[i] = decoded;
  }
  return scale;
}

// Takes over what one optimizer shows and gives it to the next.
struct Carried final : StateVisitor {
  void tensor(const StateEntry& entry) override {
    if (taking) {
      tensors[entry.name] = entry.tensor.clone();
    } else {
      entry.tensor.copy_(tensors.at(entry.name));
    }
  }
  void counter(const std::string& name, std::int64_t& value) override {
    if (taking) {
      counters[name] = value;
    } else {
      value = counters.at(name);
    }
  }
  bool taking = false;
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::int64_t> counters;
};

class Golden : public ::testing::TestWithParam<int> {};

TEST_P(Golden, EverySignAndTheWeightsAreDeepSpeeds) {
  const int ranks = GetParam();
  std::ifstream file(fmt::format("{}/deepspeed/onebit_adam_n{}.json", THINWIRE_GOLDEN, ranks));
  const auto recorded = nlohmann::json::parse(file);
  const auto seed = recorded["seed"].get<std::uint32_t>();
  const double lr = recorded["hyper"]["lr"];
  ASSERT_EQ(recorded["padded"], kSize);

  std::vector<Bucket> buckets{testing::make_bucket({{64, 16}})};
  Bucket& bucket = buckets[0];
  bucket.weights = at::zeros_like(bucket.gradient);
  auto* weights = bucket.weights.data_ptr<float>();
  auto* quantity = bucket.gradient.data_ptr<float>();
  for (std::uint32_t i = 0; i < kSize; ++i) {
    weights[i] = draw(hash(seed, 0, 254, kTensor, i), 2001) / 1024;
  }
  // Its first step is dry, and counts.
  constexpr std::int64_t kUpdatesBefore = 9;
  ASSERT_EQ(recorded["hyper"]["freeze_step"], kUpdatesBefore + 1);
  Carried state;

  std::vector<std::vector<float>> worker_error(static_cast<std::size_t>(ranks),
                                               std::vector<float>(kSize));
  std::vector<float> server_error(kSize);
  const auto queue = make_host_queue();
  for (std::uint32_t step = 2; step <= 40; ++step) {
    const std::int64_t committed = step - 2;
    // Ours corrects both moments. The rate takes it back, and eps: hence an optimizer for each
    // step, which goes on with the state of the one before.
    const double bias1 = 1 - std::pow(0.9, static_cast<double>(committed + 1));
    const double t = static_cast<double>(std::min(committed + 1, kUpdatesBefore));
    const double root2 = std::sqrt(1 - std::pow(0.999, t));
    OnebitAdam optimizer(
        buckets, {.eps = 1e-8 / root2, .freeze_step = kUpdatesBefore, .refresh_every = 0}, {});
    if (step > 2) optimizer.visit(state);
    const StepContext context{.quantity = optimizer.plan(committed).quantity};
    const bool momentum = context.quantity == Quantity::momentum;
    const auto& truth = recorded["steps"][step - 1];
    ASSERT_EQ(truth["gradient_allreduced"], !momentum) << "step " << step;
    std::vector<float> sum(kSize);
    for (int rank = 0; rank < ranks; ++rank) {
      const auto own = gradient(seed, step, static_cast<std::uint32_t>(rank));
      std::copy(own.begin(), own.end(), quantity);
      optimizer.before_reduce(bucket, context, *queue);
      float scale = 1;
      if (momentum) {
        auto& error = worker_error[static_cast<std::size_t>(rank)];
        for (std::int64_t i = 0; i < kSize; ++i) quantity[i] += error[static_cast<std::size_t>(i)];
        EXPECT_EQ(hash_of_signs(quantity, kSize),
                  truth["exchange"]["worker_sign_fnv"][static_cast<std::size_t>(rank)])
            << "step " << step << ", rank " << rank;
        scale = compress(quantity, error.data(), kSize);
        EXPECT_NEAR(scale, truth["exchange"]["worker_scale"][static_cast<std::size_t>(rank)],
                    2e-6 * scale);
      }
      for (std::size_t i = 0; i < kSize; ++i) {
        sum[i] += quantity[i] * (1 / static_cast<float>(ranks));
      }
    }
    if (momentum) {
      const std::int64_t part = kSize / ranks;
      for (int server = 0; server < ranks; ++server) {
        float* mine = sum.data() + server * part;
        float* error = server_error.data() + server * part;
        for (std::int64_t i = 0; i < part; ++i) mine[i] += error[i];
        EXPECT_EQ(hash_of_signs(mine, part),
                  truth["exchange"]["server_sign_fnv"][static_cast<std::size_t>(server)])
            << "step " << step << ", server " << server;
        compress(mine, error, part);
      }
    }
    std::copy(sum.begin(), sum.end(), quantity);
    optimizer.after_reduce(bucket, {.lr = lr * bias1 / root2, .committed_step = committed});
    optimizer.end_step(buckets, committed);
    state.taking = true;
    optimizer.visit(state);
    state.taking = false;

    const auto& full = recorded["full_weights"];
    const std::string key = std::to_string(step);
    if (!full.contains(key)) continue;
    const std::string text = full[key];
    ASSERT_EQ(text.size(), 8 * kSize);
    float largest = 0;
    float difference = 0;
    for (std::size_t i = 0; i < kSize; ++i) {
      const auto value = std::bit_cast<float>(
          static_cast<std::uint32_t>(std::stoul(text.substr(8 * i, 8), nullptr, 16)));
      largest = std::max(largest, std::abs(value));
      difference = std::max(difference, std::abs(value - weights[i]));
    }
    EXPECT_LT(difference, 2e-6 * largest) << "step " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Golden, ::testing::Values(2, 4));

TEST(Golden, HasTheRecordingsNumbers) {
  EXPECT_EQ(hash(0, 0, 0, 0, 0), 0u);
  EXPECT_EQ(hash(1, 0, 0, 0, 0), 0x514e28b7u);
  EXPECT_EQ(hash(93, 2, 1, 3, 5), 0x04554d5bu);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(gradient(93, 2, 1)[0]), 0xbdb68000u);
}

}  // namespace
}  // namespace thinwire
