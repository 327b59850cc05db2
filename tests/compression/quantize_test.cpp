#include <gtest/gtest.h>

#include <fmt/format.h>

#include "collectives/base/error.h"
#include "tests/compression/coding.h"

namespace thinwire {
namespace {

using reference::DrawKey;
using reference::PlainCodec;

using testing::coded;
using testing::decode;
using testing::encode;
using testing::normal_values;
using testing::uniform_values;

std::vector<int> bytes_of(const at::Tensor& payload, std::int64_t begin) {
  std::vector<int> bytes;
  for (std::int64_t i = begin; i < payload.numel(); ++i) {
    bytes.push_back(payload.const_data_ptr<std::uint8_t>()[i]);
  }
  return bytes;
}

TEST(Quantize, PayloadByHand) {
  // From -1 in steps of 1: levels 0, 1, 2, 3, then 34 values; the last row has two.
  at::Tensor x = at::zeros({34});
  for (const auto& [place, value] : {std::pair{0, -1.f}, {1, 2.f}, {2, 1.f}, {9, .4f}, {33, .6f}}) {
    x[place] = value;
  }
  const PlainCodec codec(Quantize{.bits = 2, .block = 64, .grid = Grid::max_min});
  const at::Tensor payload = encode(codec, x);
  ASSERT_EQ(payload.numel(), 8 + 2 * (4 + 1));
  EXPECT_EQ(payload.narrow(0, 0, 4).view(at::kFloat).item<float>(), -1);
  EXPECT_EQ(payload.narrow(0, 4, 4).view(at::kFloat).item<float>(), 1);
  // Levels: 0 at 0, 3 at 1, 2 at 2 and 33, else 1. Low plane, then high plane.
  EXPECT_EQ(bytes_of(payload, 8),
            (std::vector<int>{0xfa, 0xff, 0xff, 0xff, 0x06, 0, 0, 0, 0x01, 0x02}));
  EXPECT_TRUE(coded(codec, x).equal(at::where(x == .6f, 1, at::where(x == .4f, 0, x))));

  // Symmetric with 3 bits: m = 3, unit 1.
  at::Tensor y = at::zeros({9});
  y[0] = -3.f;
  y[1] = 1.4f;
  y[8] = 2.5f;
  const PlainCodec symmetric(Quantize{.bits = 3, .block = 32, .grid = Grid::symmetric});
  const at::Tensor coding = encode(symmetric, y);
  EXPECT_EQ(coding.narrow(0, 0, 4).view(at::kFloat).item<float>(), 1);
  // Levels plus m: 0, 4, 3 six times, 6.
  EXPECT_EQ(bytes_of(coding, 4), (std::vector<int>{0xfc, 0, 0xfc, 1, 0x02, 1}));
}

// The oracle: the definition in float64, block by block, with the draws spelled out.
TEST(Quantize, EqualsTheDefinition) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const int bits : {1, 2, 3, 4, 5, 8}) {
      for (const auto grid : {Grid::max_min, Grid::symmetric}) {
        if (bits == 1 && grid == Grid::symmetric) continue;
        for (const auto rounding : {Rounding::nearest, Rounding::stochastic}) {
          const PlainCodec codec(Quantize{bits, 96, grid, rounding});
          const at::Tensor x = normal_values(333, dtype, static_cast<std::uint64_t>(bits));
          const DrawKey key{.key = 77, .begin = 1000};
          const at::Tensor got = coded(codec, x, key).to(at::kDouble);
          const at::Tensor exact = x.to(at::kDouble);
          int differ = 0;
          for (std::int64_t i = 0; i < 333; ++i) {
            const std::int64_t begin = i / 96 * 96;
            const at::Tensor block =
                exact.narrow(0, begin, std::min<std::int64_t>(96, 333 - begin));
            double least = block.min().item<double>();
            double unit = (block.max().item<double>() - least) / ((1 << bits) - 1);
            if (grid == Grid::symmetric) {
              const int m = (1 << (bits - 1)) - 1;
              unit = block.abs().max().item<double>() / m;
              least = -unit * m;
            }
            double draw = 0.5;
            if (rounding == Rounding::stochastic) {
              const std::int64_t j = i - begin;
              const auto words =
                  philox(77, 0, static_cast<std::uint64_t>(1000 + begin + j / 128 * 32 + j % 32));
              draw = (words[static_cast<std::size_t>(j / 32 % 4)] >> 8) / 16777216.0;
            }
            const double value = exact.const_data_ptr<double>()[i];
            const double level = std::floor((value - least) / unit + draw);
            const double expected = least + unit * std::min(level, std::ldexp(1, bits) - 1);
            const double error = std::abs(got.const_data_ptr<double>()[i] - expected);
            // A value within rounding of the border between two levels may take the other.
            if (error > 1e-4 * unit) {
              EXPECT_NEAR(error, unit, 1e-4 * unit);
              ++differ;
            }
          }
          EXPECT_LE(differ, dtype == at::kFloat ? 1 : 0);
        }
      }
    }
  }
}

TEST(Quantize, NearestIsWithinHalfAUnitAndTheEndsAreExact) {
  for (const int bits : {1, 2, 4, 8}) {
    const PlainCodec codec(Quantize{.bits = bits, .block = 512, .grid = Grid::max_min});
    const at::Tensor x = normal_values(512, at::kDouble, 9);
    const at::Tensor error = coded(codec, x) - x;
    const double unit = (x.max() - x.min()).item<double>() / ((1 << bits) - 1);
    EXPECT_LE(error.abs().max().item<double>(), unit / 2 * (1 + 1e-12));
    EXPECT_GT(error.abs().max().item<double>(), unit / 4);
    EXPECT_EQ(error[x.argmin()].item<double>(), 0);
    EXPECT_NEAR(error[x.argmax()].item<double>(), 0, 4e-16 * x.max().item<double>());
  }
}

class StochasticRounding : public ::testing::TestWithParam<Grid> {};

struct Trials {
  at::Tensor mean;     // of C(x) - x
  at::Tensor squares;  // of its square
};

Trials errors(const PlainCodec& codec, const at::Tensor& x, int trials) {
  Trials sum{at::zeros_like(x), at::zeros_like(x)};
  for (int trial = 0; trial < trials; ++trial) {
    const auto key = Philox(1, PhiloxStream::rounding, 0).bits(static_cast<std::uint64_t>(trial));
    const at::Tensor error = coded(codec, x, {.key = key, .begin = 4096}) - x;
    sum.mean += error / trials;
    sum.squares += error.square() / trials;
  }
  return sum;
}

TEST_P(StochasticRounding, MeanAndVarianceAreThoseOfTheDraw) {
  const int trials = 4096;
  const at::Tensor x = normal_values(256, at::kDouble, 2);
  const Quantize options{3, 256, GetParam(), Rounding::stochastic};
  const bool max_min = GetParam() == Grid::max_min;
  const double unit =
      max_min ? (x.max() - x.min()).item<double>() / 7 : x.abs().max().item<double>() / 3;
  const at::Tensor place = (max_min ? x - x.min() : x) / unit;
  const at::Tensor f = place - place.floor();
  const at::Tensor spread = f * (1 - f);
  const at::Tensor sigma = unit * (spread / trials).sqrt() + 1e-12;
  const at::Tensor sigma_of_square =
      unit * unit * (spread / trials).sqrt() * (1 - 2 * f).abs() + 1e-12;
  const auto worst = [&](const Trials& sum) {
    return (sum.mean.abs() / sigma).max().item<double>();
  };
  const Trials stochastic = errors(PlainCodec(options), x, trials);
  EXPECT_LT(worst(stochastic), 6);
  EXPECT_LT(
      ((stochastic.squares - unit * unit * spread).abs() / sigma_of_square).max().item<double>(),
      6);
  // The control: nearest rounding is biased.
  Quantize nearest = options;
  nearest.rounding = Rounding::nearest;
  EXPECT_GT(worst(errors(PlainCodec(nearest), x, 4)), 6);
}

TEST_P(StochasticRounding, TheErrorOfTheMeanFallsAsOneOverTheRootOfTrials) {
  const at::Tensor x = normal_values(1024, at::kDouble, 3);
  const auto ratio = [&](Rounding rounding) {
    const PlainCodec codec(Quantize{4, 512, GetParam(), rounding});
    const double few = std::sqrt(testing::square_norm(errors(codec, x, 32).mean));
    return few / std::sqrt(testing::square_norm(errors(codec, x, 512).mean));
  };
  EXPECT_NEAR(ratio(Rounding::stochastic), 4, 0.4);
  EXPECT_NEAR(ratio(Rounding::nearest), 1, 1e-9);
}

INSTANTIATE_TEST_SUITE_P(Grids, StochasticRounding,
                         ::testing::Values(Grid::max_min, Grid::symmetric));

TEST(Quantize, RanksStepsAndPlacesHaveTheirOwnDraws) {
  const PlainCodec codec(Quantize{.bits = 2, .rounding = Rounding::stochastic});
  const at::Tensor x = uniform_values(512, at::kFloat);
  EXPECT_TRUE(encode(codec, x, {1, 0}).equal(encode(codec, x, {1, 0})));
  EXPECT_FALSE(encode(codec, x, {1, 0}).equal(encode(codec, x, {2, 0})));
  EXPECT_FALSE(encode(codec, x, {1, 0}).equal(encode(codec, x, {1, 512})));
}

TEST(Quantize, BlocksWithoutARangeDecodeToTheirValueOrZeros) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  for (const auto grid : {Grid::max_min, Grid::symmetric}) {
    const PlainCodec codec(Quantize{.bits = 4, .block = 32, .grid = grid});
    at::Tensor x = at::zeros({160});
    x.narrow(0, 32, 32).fill_(-tiny);
    x.narrow(0, 64, 16).fill_(tiny);
    x.narrow(0, 96, 32).fill_(0.75f);
    x.narrow(0, 128, 32).fill_(-0.0f);
    const at::Tensor payload = encode(codec, x);
    EXPECT_TRUE(codec.finite(payload, 160, at::kFloat, 1));
    const at::Tensor got = decode(codec, payload, x);
    at::Tensor expected = at::zeros({160});
    expected.narrow(0, 96, 32).fill_(0.75f);
    EXPECT_LT((got - expected).abs().max().item<float>(), grid == Grid::max_min ? 1e-30 : 1e-7);
    EXPECT_TRUE(got.narrow(0, 0, 96).equal(expected.narrow(0, 0, 96)));
    // The last block's payload has no set bit: -0 became +0.
    const std::int64_t bytes = codec.payload_bytes(32, at::kFloat);
    EXPECT_EQ(payload.narrow(0, payload.numel() - bytes, bytes).max().item<int>(), 0);
  }
}

TEST(Quantize, ARangeThatOverflowsIsNotFinite) {
  const float huge = std::numeric_limits<float>::max();
  at::Tensor x = at::zeros({64});
  x[0] = -huge;
  x[1] = huge;
  const PlainCodec max_min(Quantize{.bits = 4, .block = 64, .grid = Grid::max_min});
  EXPECT_FALSE(max_min.finite(encode(max_min, x), 64, at::kFloat, 1));
  EXPECT_TRUE(coded(max_min, x).isnan().all().item<bool>());
  // What is said to be finite decodes to finite values.
  for (const auto grid : {Grid::max_min, Grid::symmetric}) {
    for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
      const PlainCodec codec(Quantize{.bits = bits, .block = 64, .grid = grid});
      for (int down = 0; down < 40; ++down) {
        at::Tensor y = at::zeros({64});
        y[5] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(huge) -
                                    static_cast<std::uint32_t>(down));
        EXPECT_EQ(codec.finite(encode(codec, y), 64, at::kFloat, 1),
                  coded(codec, y).isfinite().all().item<bool>());
      }
    }
  }
}

TEST(Quantize, ItsGridHasAZeroFromFourBitsOn) {
  for (int bits = 1; bits <= 8; ++bits) {
    EXPECT_EQ(Quantize::grid_of(PlainCodec(Quantize{.bits = bits}).format(512)),
              bits < 4 ? Grid::max_min : Grid::symmetric);
  }
  const PlainCodec codec(Quantize{.bits = 4, .block = 64});
  at::Tensor mostly_zeros = at::zeros({64});
  mostly_zeros[7] = 3.0;
  mostly_zeros[9] = -1.7;
  EXPECT_EQ(coded(codec, mostly_zeros).eq(0).sum().item<std::int64_t>(), 62);
}

TEST(Quantize, OptionsThatCannotBeSayWhatCan) {
  EXPECT_THROW(PlainCodec(Quantize{.bits = 0}), UsageError);
  EXPECT_THROW(PlainCodec(Quantize{.bits = 9}), UsageError);
  EXPECT_THROW(PlainCodec(Quantize{.bits = 4, .block = 48}), UsageError);
  EXPECT_THROW(PlainCodec(Quantize{.bits = 4, .block = 0}), UsageError);
  EXPECT_THROW(PlainCodec(Quantize{.bits = 1, .grid = Grid::symmetric}), UsageError);
}

// Why feedback for one bit is warned of: a block's range is far wider than most of its values.
TEST(Quantize, ResidualsOfOneBitKeepGrowingInLargeBlocks) {
  const auto residual_after = [](const Quantize& options, int steps) {
    const PlainCodec codec(options);
    at::Tensor residual = at::zeros({options.block}, at::kDouble);
    for (int step = 0; step < steps; ++step) {
      const auto key = static_cast<std::uint64_t>(step);
      const at::Tensor message = testing::normal_values(options.block, at::kDouble, key) + residual;
      residual = message - testing::coded(codec, message);
    }
    return std::sqrt(residual.square().mean().item<double>());
  };
  EXPECT_GT(residual_after({.bits = 1, .block = 1024}, 1000), 40);
  EXPECT_GT(residual_after({.bits = 1, .block = 1024}, 300),
            2 * residual_after({.bits = 1, .block = 1024}, 30));
  EXPECT_LT(residual_after({.bits = 1, .block = 32}, 1000), 20);
  EXPECT_LT(residual_after({.bits = 2, .block = 1024}, 1000), 1);
}

}  // namespace
}  // namespace thinwire
