#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <set>
#include <string>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/coding.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

using reference::PlainCodec;

using testing::coded;
using testing::encode;

// Every float near a 16-bit number, half way between two, and at random.
at::Tensor floats_to_try() {
  std::vector<float> values;
  const auto around = [&](float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    for (const std::uint32_t shift : {0u, 1u, ~0u}) {
      values.push_back(std::bit_cast<float>(bits + shift));
    }
  };
  for (std::uint32_t half = 0; half < 0x10000; half += 7) {
    around(std::bit_cast<float>(half << 16));
    around(std::bit_cast<float>(half << 16 | 0x8000));
    const float fp16 =
        static_cast<float>(at::Half(static_cast<std::uint16_t>(half), at::Half::from_bits()));
    const float next =
        static_cast<float>(at::Half(static_cast<std::uint16_t>(half + 1), at::Half::from_bits()));
    around(fp16);
    around((fp16 + next) / 2);
  }
  const Philox draws(1, PhiloxStream::synthetic_data, 0);
  for (std::uint64_t i = 0; i < 100000; ++i) {
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(draws.bits(i))));
  }
  return at::tensor(values);
}

// The oracle: ATen's own conversion, but for what saturates.
TEST(Cast, RoundsAsATenDoesAndSaturates) {
  const at::Tensor x = floats_to_try();
  for (const auto half : {Half::fp16, Half::bf16}) {
    const auto dtype = half == Half::fp16 ? at::kHalf : at::kBFloat16;
    const double largest = half == Half::fp16 ? 65504 : 0x1.fep127;
    const PlainCodec codec(Cast{half});
    ASSERT_EQ(codec.payload_bytes(x.numel(), at::kFloat), 2 * x.numel());
    const at::Tensor got = encode(codec, x).view(at::kShort);
    const at::Tensor expected =
        at::where(x.isinf(), x, x.to(dtype).to(at::kFloat).clamp(-largest, largest))
            .to(dtype)
            .view(at::kShort);
    const at::Tensor differ = (got != expected).logical_and(x.isnan().logical_not());
    EXPECT_EQ(differ.sum().item<std::int64_t>(), 0)
        << x.masked_select(differ).slice(0, 0, 5) << got.masked_select(differ).slice(0, 0, 5);
    EXPECT_TRUE(
        got.masked_select(x.isnan()).eq(half == Half::fp16 ? 0x7e00 : 0x7fc0).all().item<bool>());
  }
}

TEST(Cast, DecodesEveryNumberExactly) {
  at::Tensor payload = at::arange(0, 0x10000, at::kInt).to(at::kShort);
  for (const auto half : {Half::fp16, Half::bf16}) {
    const auto dtype = half == Half::fp16 ? at::kHalf : at::kBFloat16;
    for (const auto wide : {at::kFloat, at::kDouble}) {
      at::Tensor got = at::zeros({0x10000}, wide);
      PlainCodec(Cast{half}).decode_add(payload.view(at::kByte), 1, got);
      const at::Tensor expected = payload.view(dtype).to(wide);
      EXPECT_TRUE(got.isnan().equal(expected.isnan()));
      EXPECT_TRUE(got.nan_to_num(7, 8, 9).equal(expected.nan_to_num(7, 8, 9)));
    }
  }
}

TEST(Cast, DoublesBecomeFloatsFirst) {
  const PlainCodec codec(Cast{Half::bf16});
  // Half way between two bfloat16 but for a bit that a float does not have: a tie, to even.
  const double above_tie = 1 + 0x1p-8 + 0x1p-40;
  const at::Tensor x = at::tensor({above_tie, 1e300, -1e300, 1e-300}, at::kDouble);
  EXPECT_TRUE(coded(codec, x).equal(at::tensor({1.0, 0x1.fep127, -0x1.fep127, 0.0}, at::kDouble)));
  EXPECT_TRUE(codec.finite(encode(codec, x), 4, at::kDouble, 1));
}

TEST(Cast, NonFiniteValuesAreSeenAnywhere) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto half : {Half::fp16, Half::bf16}) {
    const PlainCodec codec(Cast{half});
    for (const float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN()}) {
      for (const int place : {0, 77, 129}) {
        at::Tensor x = testing::uniform_values(130, at::kFloat);
        EXPECT_TRUE(codec.finite(encode(codec, x), 130, at::kFloat, 1));
        x[place] = bad;
        EXPECT_FALSE(codec.finite(encode(codec, x), 130, at::kFloat, 1));
        EXPECT_FALSE(std::isfinite(coded(codec, x)[place].item<float>()));
      }
    }
  }
}

// What a reducer says of a bucket of two matrices, of which the second has this constant gradient
// in `steps` steps; in which of them, with what.
std::map<std::int64_t, std::string> warnings(const CompressionOptions& options, double value,
                                             std::int64_t steps) {
  std::map<std::int64_t, std::string> all;
  run_ranks(2, [&](auto communicator) {
    Bucket bucket = testing::make_bucket({{20, 30}, {40, 50}});
    const auto reducer = make_reducer(options);
    reducer->prepare(bucket, communicator->rank(), 2);
    for (std::int64_t step = 0; step < steps; ++step) {
      bucket.gradient.copy_(testing::random_gradient(bucket, step, communicator->rank()));
      bucket.gradient.narrow(0, bucket.slices[1].offset + 700, 40).fill_(value);
      reducer->stage(bucket, *communicator, {.step = step, .seed = 1});
      reducer->settle(*communicator);
      EXPECT_FALSE(reducer->non_finite(bucket));
      const auto warning = reducer->warning(bucket);
      reducer->commit(bucket);
      if (warning && communicator->rank() == 1) all[step] = *warning;
    }
  });
  return all;
}

TEST(Fp16, ThatClampsIsSaidWithTheParameterEveryHundredSteps) {
  const CompressionOptions fp16{Cast{Half::fp16}};
  const CompressionOptions without{Cast{Half::fp16}, {FeedbackKind::none}};
  for (const double value : {1e5, -7e4, 1e18, 1e30}) {
    const auto said = warnings(fp16, value, 201);
    ASSERT_EQ(said.size(), 3U) << value;
    for (const std::int64_t step : {0, 100, 200}) {
      EXPECT_NE(said.at(step).find("p1 at 65504"), std::string::npos) << said.at(step);
      EXPECT_NE(said.at(step).find("residual"), std::string::npos) << said.at(step);
    }
    EXPECT_NE(warnings(without, value, 1).at(0).find("is lost"), std::string::npos);
  }
  for (const double value : {0.0, 1e-7, 3e-4, 1.0, 65000.0, -65503.0}) {
    EXPECT_TRUE(warnings(fp16, value, 201).empty()) << value;
  }
  EXPECT_TRUE(warnings({Cast{Half::bf16}}, 1e30, 201).empty());
  EXPECT_TRUE(warnings({Sign{64}}, 1e5, 101).empty());
}

}  // namespace
}  // namespace thinwire
