// What every codec must do, over random shapes, dtypes and values.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>

#include "tests/compression/coding.h"
#include "tests/compression/kernel_cases.h"

namespace thinwire {
namespace {

using reference::PlainCodec;

using kernel_cases::Dice;
using testing::coded;
using testing::decode;
using testing::encode;
using testing::same_bits;
using testing::square_norm;

struct NamedCodec {
  std::string name;
  std::shared_ptr<PlainCodec> codec;
  bool homogeneous = true;  // C(c x) = c C(x) for c a power of two
};

std::vector<NamedCodec> codecs() {
  std::vector<NamedCodec> all;
  const auto add = [&](std::shared_ptr<PlainCodec> codec, bool homogeneous = true) {
    all.push_back({codec->describe(), codec, homogeneous});
  };
  add(std::make_shared<PlainCodec>(Uncompressed{}));
  for (const auto scale : {SignScale::l1, SignScale::rms}) {
    add(std::make_shared<PlainCodec>(Sign{64, scale}));
    add(std::make_shared<PlainCodec>(Sign{1000, scale}));
  }
  for (const auto grid : {Grid::max_min, Grid::symmetric}) {
    for (const auto rounding : {Rounding::nearest, Rounding::stochastic}) {
      for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8}) {
        if (bits == 1 && grid == Grid::symmetric) continue;
        add(std::make_shared<PlainCodec>(Quantize{bits, bits % 2 == 0 ? 96 : 512, grid, rounding}));
      }
    }
  }
  add(std::make_shared<PlainCodec>(Cast{Half::fp16}), false);  // its range is narrow
  add(std::make_shared<PlainCodec>(Cast{Half::bf16}));
  add(std::make_shared<PlainCodec>(Fp8{100}));
  for (const auto selection : {Selection::threshold, Selection::exact}) {
    for (const double density : {0.001, 0.05, 0.7}) {
      // A threshold may keep some more or fewer: its bisection begins at zero, whatever the scale.
      add(std::make_shared<PlainCodec>(TopK{density, density < 0.01 ? 100 : 512, selection}),
          selection == Selection::exact);
    }
  }
  return all;
}

// Of moderate size; and `wild`: with zeros, denormals, huge ones, blocks of one kind.
at::Tensor tame_values(Dice& dice, std::int64_t count, at::ScalarType dtype) {
  at::Tensor x = at::empty({count}, at::kDouble);
  for (std::int64_t i = 0; i < count; ++i) {
    x.data_ptr<double>()[i] = std::ldexp(2 * dice.uniform() - 1, static_cast<int>(dice.below(8)));
  }
  return x.to(dtype);
}

at::Tensor wild_values(Dice& dice, std::int64_t count, at::ScalarType dtype) {
  at::Tensor x = tame_values(dice, count, at::kDouble);
  const double denormal = dtype == at::kFloat ? 1e-42 : 1e-320;
  const double huge = dtype == at::kFloat ? 1e34 : 1e300;
  double kinds[] = {0.0, -0.0, denormal, -denormal, huge, -huge, 1.0};
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t run = std::min(count - i, 1 + dice.below(200));
    const std::int64_t kind = dice.below(12);
    if (kind < 7) x.narrow(0, i, run).fill_(kinds[kind]);
    i += run;
  }
  return x.to(dtype);
}

template <typename Body>
void for_each_case(const Body& body) {
  Dice dice(11);
  for (const NamedCodec& codec : codecs()) {
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      for (int round = 0; round < 12; ++round) {
        SCOPED_TRACE(fmt::format("{}, round {}, {}", codec.name, round, at::toString(dtype)));
        body(codec, dice, round == 0 ? 0 : 1 + dice.below(1500), dtype);
      }
    }
  }
}

TEST(EveryCodec, CodesPartsLikeTheWhole) {
  for_each_case([](const NamedCodec& named, Dice& dice, std::int64_t count, auto dtype) {
    const PlainCodec& codec = *named.codec;
    const at::Tensor x = wild_values(dice, count, dtype);
    const at::Tensor whole = encode(codec, x, {.key = 5, .begin = 64});
    const std::int64_t cut = dice.below(count / codec.block() + 1) * codec.block();
    const at::Tensor parts = at::cat({encode(codec, x.narrow(0, 0, cut), {5, 64}),
                                      encode(codec, x.narrow(0, cut, count - cut), {5, 64 + cut})});
    EXPECT_TRUE(whole.equal(parts));
  });
}

TEST(EveryCodec, DecodesFiniteValuesToFiniteOnesAndSaysSo) {
  for_each_case([](const NamedCodec& named, Dice& dice, std::int64_t count, auto dtype) {
    const PlainCodec& codec = *named.codec;
    at::Tensor x = wild_values(dice, count, dtype);
    const at::Tensor payload = encode(codec, x, {.key = 5});
    EXPECT_EQ(decode(codec, payload, x).isfinite().all().template item<bool>(),
              codec.finite(payload, count, dtype, 1));
    if (count == 0) return;
    x[dice.below(count)] = std::numeric_limits<double>::infinity();
    EXPECT_FALSE(codec.finite(encode(codec, x, {.key = 5}), count, dtype, 1));
  });
}

TEST(EveryCodec, ASubtractedDecodeCancelsAnAddedOne) {
  for_each_case([](const NamedCodec& named, Dice& dice, std::int64_t count, auto dtype) {
    const at::Tensor x = tame_values(dice, count, dtype);
    const at::Tensor payload = encode(*named.codec, x, {.key = 5});
    at::Tensor sum = decode(*named.codec, payload, x);
    named.codec->decode_add(payload, -1, sum);
    EXPECT_TRUE(sum.equal(at::zeros_like(x)));
  });
}

TEST(EveryCodec, ScalesWithItsInput) {
  for_each_case([](const NamedCodec& named, Dice& dice, std::int64_t count, auto dtype) {
    if (!named.homogeneous) return;
    const at::Tensor x = tame_values(dice, count, dtype);
    const double factor = std::ldexp(1, static_cast<int>(dice.below(60)) - 30);
    EXPECT_TRUE(same_bits(coded(*named.codec, x, {.key = 5}) * factor,
                          coded(*named.codec, x * factor, {.key = 5})));
  });
}

TEST(EveryCodec, KeepsZerosInABlockOfZeros) {
  for_each_case([](const NamedCodec& named, Dice&, std::int64_t count, auto dtype) {
    const at::Tensor x = at::zeros({count}, dtype);
    EXPECT_TRUE(coded(*named.codec, x, {.key = 5}).equal(x));
  });
}

// The exact error of a sign with either scale, for distributions that differ in rho.
TEST(Sign, ErrorsFollowFromRho) {
  const at::Tensor dense = testing::normal_values(4096, at::kDouble);
  at::Tensor sparse = at::zeros({4096}, at::kDouble);
  sparse.slice(0, 0, 4096, 100).copy_(testing::normal_values(41, at::kDouble));
  for (const at::Tensor& x : {dense, sparse, dense.sign() * dense.square()}) {
    const double rho = x.abs().sum().item<double>() / std::sqrt(4096 * square_norm(x));
    const auto error = [&](SignScale scale) {
      return square_norm(x - coded(PlainCodec(Sign{4096, scale}), x)) / square_norm(x);
    };
    EXPECT_NEAR(error(SignScale::l1), 1 - rho * rho, 1e-12);
    EXPECT_NEAR(error(SignScale::rms), 2 * (1 - rho), 1e-12);
    EXPECT_NEAR(square_norm(coded(PlainCodec(Sign{4096, SignScale::rms}), x)) / square_norm(x), 1,
                1e-12);
  }
  // A sign with the rms scale is no contraction where few values are not zero.
  EXPECT_GT(square_norm(sparse - coded(PlainCodec(Sign{4096, SignScale::rms}), sparse)),
            square_norm(sparse));
}

}  // namespace
}  // namespace thinwire
