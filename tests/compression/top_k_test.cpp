#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "collectives/base/error.h"
#include "tests/compression/coding.h"

namespace thinwire {
namespace {

using reference::PlainCodec;

using testing::coded;
using testing::encode;
using testing::normal_values;
using testing::square_norm;

// The oracle: a stable sort by magnitude, so that of equal ones the lower index comes first.
at::Tensor best_approximation(const at::Tensor& x, std::int64_t kept) {
  at::Tensor result = at::zeros_like(x);
  std::vector<std::int64_t> order(static_cast<std::size_t>(x.numel()));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const at::Tensor magnitudes = x.abs().to(at::kDouble);
  const double* magnitude = magnitudes.const_data_ptr<double>();
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return magnitude[a] > magnitude[b]; });
  for (std::int64_t k = 0; k < std::min(kept, x.numel()); ++k) {
    const std::int64_t i = order[static_cast<std::size_t>(k)];
    if (magnitude[i] > 0) result[i] = x[i];
  }
  return result;
}

// Values with many ties, zeros of both signs and denormals.
at::Tensor coarse_values(std::int64_t count, at::ScalarType dtype, std::uint64_t key) {
  at::Tensor x = (normal_values(count, at::kDouble, key) * 2).round().to(dtype);
  x.masked_fill_(x.eq(3), 1e-310).masked_fill_(x.eq(-3), -1e-42);
  return x;
}

std::int64_t number_of_nonzeros(const at::Tensor& x) {
  return x.ne(0).sum().item<std::int64_t>();
}

TEST(TopK, PayloadByHand) {
  const PlainCodec codec(TopK{.density = 0.3, .block = 32, .selection = Selection::exact});
  at::Tensor x = at::zeros({7});
  x[1] = 2.f;
  x[4] = -3.f;
  x[6] = 1.f;
  // Two of seven are kept; indices take three bits each: 001, 100 from the lowest bit on.
  const at::Tensor payload = encode(codec, x);
  ASSERT_EQ(payload.numel(), 4 + 2 * 4 + 1);
  EXPECT_EQ(payload.narrow(0, 0, 4).view(at::kInt).item<int>(), 2);
  EXPECT_TRUE(payload.narrow(0, 4, 8).view(at::kFloat).equal(at::tensor({2.f, -3.f})));
  EXPECT_EQ(payload[12].item<int>(), 0b100'001);
  // Zeros are not kept, and unused room is zero.
  const at::Tensor empty = encode(codec, at::zeros({7}));
  EXPECT_EQ(empty.max().item<int>(), 0);
}

TEST(TopK, ExactIsTheBestApproximation) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const double density : {1e-6, 0.01, 0.1, 0.5, 1.0}) {
      const PlainCodec codec(TopK{.density = density, .block = 128, .selection = Selection::exact});
      for (std::uint64_t key = 0; key < 40; ++key) {
        for (const std::int64_t count : {1, 2, 20, 127, 128}) {
          for (const at::Tensor& x :
               {coarse_values(count, dtype, key), normal_values(count, dtype, key)}) {
            const at::Tensor got = coded(codec, x);
            const auto kept = codec.format(count).entries;
            EXPECT_EQ(kept, std::max(1.0, std::round(density * static_cast<double>(count))));
            EXPECT_TRUE(got.equal(best_approximation(x, kept)));
            EXPECT_TRUE(coded(codec, got).equal(got)) << "not idempotent";
          }
        }
      }
    }
  }
}

TEST(TopK, AThresholdKeepsTheLargestAndNearlyAsMany) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const double density : {0.01, 0.05, 0.3}) {
      const PlainCodec codec(TopK{.density = density, .block = 4096});
      bool fewer = false;
      for (std::uint64_t key = 0; key < 20; ++key) {
        for (const std::int64_t count : {1, 64, 1000, 4096}) {
          const auto kept = codec.format(count).entries;
          for (const bool coarse : {false, true}) {
            const at::Tensor x =
                coarse ? coarse_values(count, dtype, key) : normal_values(count, dtype, key);
            const at::Tensor got = coded(codec, x);
            const std::int64_t n = number_of_nonzeros(got);
            EXPECT_LE(n, kept);
            EXPECT_GE(static_cast<double>(n), 0.95 * static_cast<double>(std::min<std::int64_t>(
                                                         kept, number_of_nonzeros(x))));
            // The kept ones are the n largest.
            EXPECT_TRUE(got.equal(best_approximation(x, n)));
            fewer = fewer || n < kept;
          }
        }
      }
      EXPECT_TRUE(fewer) << "the search never stopped early";
    }
  }
}

TEST(TopK, ABlockOfEqualValuesSendsSome) {
  for (const auto selection : {Selection::exact, Selection::threshold}) {
    const PlainCodec codec(TopK{.density = 0.1, .block = 64, .selection = selection});
    const at::Tensor x = at::full({40}, -2.5f);
    at::Tensor expected = at::zeros({40});
    expected.narrow(0, 0, 4).fill_(-2.5f);
    EXPECT_TRUE(coded(codec, x).equal(expected));
  }
}

TEST(TopK, ContractsByTheShareThatItKeeps) {
  const PlainCodec codec(TopK{.density = 0.05, .block = 1000, .selection = Selection::exact});
  EXPECT_EQ(codec.contraction(), 0.05);
  const at::Tensor x = normal_values(1000, at::kDouble);
  EXPECT_LT(square_norm(x - coded(codec, x)), 0.95 * square_norm(x));
  // Equality where all magnitudes are equal.
  const at::Tensor flat = at::ones({1000}, at::kDouble);
  EXPECT_EQ(square_norm(flat - coded(codec, flat)), 950);
}

TEST(TopK, NonFiniteValuesAreSeenAnywhere) {
  const double inf = std::numeric_limits<double>::infinity();
  const PlainCodec codec(TopK{.density = 0.05, .block = 64});
  for (const double bad : {inf, -inf, std::numeric_limits<double>::quiet_NaN()}) {
    for (const int place : {0, 63, 64, 130}) {
      at::Tensor x = normal_values(131, at::kFloat);
      x[place] = bad;
      const at::Tensor payload = encode(codec, x);
      EXPECT_FALSE(codec.finite(payload, 131, at::kFloat, 1));
      const std::int64_t begin = place / 64 * 64;
      const at::Tensor nans = coded(codec, x).isnan();
      EXPECT_TRUE(
          nans.narrow(0, begin, std::min<std::int64_t>(64, 131 - begin)).all().item<bool>());
      EXPECT_LE(nans.sum().item<int>(), 64);
    }
  }
}

TEST(TopK, APayloadThatMakesNoSenseDecodesToNaN) {
  const PlainCodec codec(TopK{.density = 0.5, .block = 32});
  const at::Tensor x = normal_values(5, at::kFloat);
  const at::Tensor good = encode(codec, x);  // room for three values, indices of three bits
  ASSERT_EQ(codec.format(5).entries, 3);
  const auto verdict = [&](std::uint32_t kept, int indices) {
    at::Tensor payload = good.clone();
    payload.narrow(0, 0, 4).view(at::kInt).fill_(static_cast<int>(kept));
    payload[16] = indices & 0xff;
    payload[17] = indices >> 8;
    const bool finite = codec.finite(payload, 5, at::kFloat, 1);
    EXPECT_EQ(testing::decode(codec, payload, x).isnan().all().item<bool>(), !finite);
    return finite;
  };
  // The first index is in the lowest bits.
  EXPECT_TRUE(verdict(3, 0b010'001'000));
  EXPECT_TRUE(verdict(3, 0b100'011'010));
  EXPECT_TRUE(verdict(2, 0b000'001'000)) << "the third is not read";
  EXPECT_FALSE(verdict(4, 0b010'001'000)) << "more than there is room for";
  EXPECT_FALSE(verdict(0x80000001, 0b010'001'000));
  EXPECT_FALSE(verdict(0xffffffff, 0b010'001'000));
  EXPECT_FALSE(verdict(3, 0b001'001'000)) << "twice the same index";
  EXPECT_FALSE(verdict(3, 0b000'010'001)) << "out of order";
  EXPECT_FALSE(verdict(3, 0b101'001'000)) << "index 5 of 5";
}

TEST(TopK, OptionsThatCannotBeSayWhatCan) {
  EXPECT_THROW(PlainCodec(TopK{.density = 0}), UsageError);
  EXPECT_THROW(PlainCodec(TopK{.density = 1.1}), UsageError);
  EXPECT_THROW(PlainCodec(TopK{.density = std::nan("")}), UsageError);
  EXPECT_THROW(PlainCodec(TopK{.density = .1, .block = 31}), UsageError);
  EXPECT_THROW(PlainCodec(TopK{.density = .1, .block = (1 << 24) + 1}), UsageError);
}

}  // namespace
}  // namespace thinwire
