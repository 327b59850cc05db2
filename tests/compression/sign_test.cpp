#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/compression/support.h"
#include "tests/reference/codec.h"

namespace thinwire {
namespace {

using reference::PlainCodec;

at::Tensor encode(const PlainCodec& codec, const at::Tensor& values) {
  at::Tensor payload =
      at::full({codec.payload_bytes(values.numel(), values.scalar_type())}, 0xA5, at::kByte);
  codec.encode(values, payload, {});
  return payload;
}

at::Tensor decode(const PlainCodec& codec, const at::Tensor& payload, const at::Tensor& like) {
  at::Tensor values = at::zeros_like(like);
  codec.decode_add(payload, 1, values);
  return values;
}

at::Tensor values_of(std::int64_t count, at::ScalarType dtype, std::uint64_t key = 0) {
  at::Tensor tensor = at::empty({count}, at::kDouble);
  const Philox draws(3, PhiloxStream::synthetic_data, key);
  for (std::int64_t i = 0; i < count; ++i) {
    tensor.data_ptr<double>()[i] = 2 * draws.uniform(static_cast<std::uint64_t>(i)) - 1;
  }
  return tensor.to(dtype);
}

TEST(Sign, PayloadBytes) {
  const PlainCodec codec(Sign{1024});
  EXPECT_EQ(codec.payload_bytes(0, at::kFloat), 0);
  EXPECT_EQ(codec.payload_bytes(1, at::kFloat), 4 + 1);
  EXPECT_EQ(codec.payload_bytes(1024, at::kFloat), 4 + 128);
  EXPECT_EQ(codec.payload_bytes(1025, at::kFloat), 4 + 128 + 4 + 1);
  EXPECT_EQ(codec.payload_bytes(1025, at::kDouble), 8 + 128 + 8 + 1);
}

// The oracle: float64 scalar code, block by block.
TEST(Sign, EqualsTheDefinition) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const std::int64_t count : {1, 7, 8, 31, 32, 33, 64, 100, 1000}) {
      const PlainCodec codec(Sign{64});
      const at::Tensor x = values_of(count, dtype);
      const at::Tensor got = decode(codec, encode(codec, x), x).to(at::kDouble);
      const at::Tensor exact = x.to(at::kDouble);
      for (std::int64_t begin = 0; begin < count; begin += 64) {
        const std::int64_t end = std::min<std::int64_t>(count, begin + 64);
        double sum = 0;
        for (std::int64_t i = begin; i < end; ++i) sum += std::abs(exact.data_ptr<double>()[i]);
        const double scale = sum / static_cast<double>(end - begin);
        for (std::int64_t i = begin; i < end; ++i) {
          const double expected = exact.data_ptr<double>()[i] < 0 ? -scale : scale;
          const double tolerance = dtype == at::kFloat ? 1e-6 : 1e-14;
          EXPECT_NEAR(got.data_ptr<double>()[i], expected, tolerance * scale);
        }
      }
    }
  }
}

TEST(Sign, ErrorIsOneMinusRhoSquared) {
  const PlainCodec codec(Sign{512});
  const at::Tensor x = values_of(512, at::kDouble);
  const at::Tensor error = x - decode(codec, encode(codec, x), x);
  const double rho = x.abs().sum().item<double>() / (std::sqrt(512.0) * x.norm().item<double>());
  EXPECT_NEAR(error.square().sum().item<double>() / x.square().sum().item<double>(), 1 - rho * rho,
              1e-12);
}

TEST(Sign, ExactOnRepresentableInput) {
  // Mean magnitude 2, exactly.
  const PlainCodec codec(Sign{8});
  const at::Tensor x = at::tensor({1.f, -3.f, 2.f, -2.f, 0.f, 4.f, -0.f, -4.f});
  EXPECT_TRUE(decode(codec, encode(codec, x), x)
                  .equal(at::tensor({2.f, -2.f, 2.f, -2.f, 2.f, 2.f, 2.f, -2.f})));
}

TEST(Sign, ZeroAndDenormalBlocksDecodeToZeros) {
  const PlainCodec codec(Sign{32});
  at::Tensor x = at::zeros({96});
  x.narrow(0, 32, 32).fill_(std::numeric_limits<float>::denorm_min());
  x.narrow(0, 64, 32).fill_(1.0f);
  const at::Tensor payload = encode(codec, x);
  EXPECT_TRUE(codec.finite(payload, 96, at::kFloat, 1));
  const at::Tensor got = decode(codec, payload, x);
  EXPECT_TRUE(got.narrow(0, 0, 64).equal(at::zeros({64})));
  EXPECT_TRUE(got.narrow(0, 64, 32).equal(at::ones({32})));
}

TEST(Sign, PaddingEntersNoScale) {
  const PlainCodec codec(Sign{1024});
  const at::Tensor x = at::full({3}, -5.0f);
  EXPECT_TRUE(decode(codec, encode(codec, x), x).equal(x));
}

TEST(Sign, PartsOfATensorCodeLikeTheWhole) {
  const PlainCodec codec(Sign{64});
  const at::Tensor x = values_of(300, at::kFloat);
  const at::Tensor whole = encode(codec, x);
  const at::Tensor parts =
      at::cat({encode(codec, x.narrow(0, 0, 128)), encode(codec, x.narrow(0, 128, 172))});
  EXPECT_TRUE(whole.equal(parts));
}

TEST(Sign, NonFiniteValuesAreSeenAnywhere) {
  const PlainCodec codec(Sign{64});
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::int64_t place : {0, 31, 63, 64, 130}) {
      at::Tensor x = values_of(131, at::kFloat);
      x[place] = bad;
      const at::Tensor payload = encode(codec, x);
      EXPECT_FALSE(codec.finite(payload, 131, at::kFloat, 1)) << bad << " at " << place;
      EXPECT_TRUE(at::isnan(decode(codec, payload, x)[place]).item<bool>());
    }
  }
}

TEST(Sign, ASubtractedDecodeCancelsAnAddedOne) {
  const PlainCodec codec(Sign{64});
  const at::Tensor x = values_of(200, at::kFloat);
  const at::Tensor payload = encode(codec, x);
  at::Tensor sum = decode(codec, payload, x);
  codec.decode_add(payload, -1, sum);
  EXPECT_TRUE(sum.equal(at::zeros({200})));
}

TEST(Identity, IsExactAndSeesNonFiniteValues) {
  const PlainCodec codec(Uncompressed{});
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    at::Tensor x = values_of(77, dtype);
    EXPECT_EQ(codec.payload_bytes(77, dtype), static_cast<std::int64_t>(x.nbytes()));
    at::Tensor payload = encode(codec, x);
    EXPECT_TRUE(decode(codec, payload, x).equal(x));
    EXPECT_TRUE(codec.finite(payload, 77, dtype, 1));
    EXPECT_TRUE(reference::all_finite(x));
    for (const std::int64_t place : {0, 40, 76}) {
      at::Tensor y = x.clone();
      y[place] = std::numeric_limits<double>::infinity();
      EXPECT_FALSE(codec.finite(encode(codec, y), 77, dtype, 1));
      EXPECT_FALSE(reference::all_finite(y));
    }
  }
}

}  // namespace
}  // namespace thinwire
