#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "collectives/base/error.h"
#include "tests/compression/coding.h"

namespace thinwire {
namespace {

using testing::coded;
using testing::decode;
using testing::encode;
using testing::PlainCodec;

// The bytes of a payload behind its scale.
std::vector<int> bytes_of(const at::Tensor& payload) {
  std::vector<int> bytes;
  for (std::int64_t i = 4; i < payload.numel(); ++i) bytes.push_back(payload[i].item<int>());
  return bytes;
}

TEST(Fp8, PayloadByHand) {
  const PlainCodec codec(Fp8{32});
  // The largest is 448: the scale is 1. 17 and 19 are ties, between 16 and 18, 18 and 20.
  const at::Tensor x = at::tensor(
      {448.f, -1.f, 17.f, 19.f, 0x1p-6f, 0x1p-9f, -0x1p-10f, 0x1.8p-9f, -0.f, 432.f, 1.0625f});
  const at::Tensor payload = encode(codec, x);
  EXPECT_EQ(payload.narrow(0, 0, 4).view(at::kFloat).item<float>(), 1);
  EXPECT_EQ(bytes_of(payload),
            (std::vector<int>{0x7e, 0xb8, 0x58, 0x5a, 0x08, 0x01, 0x80, 0x02, 0x80, 0x7e, 0x38}));
}

TEST(Fp8, TheScaleIsTheLeastPowerOfTwoThatReachesTheLargestValue) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const auto& [largest, scale] : {std::pair{448.0, 1.0},
                                         {448.0001, 2.0},
                                         {224.0001, 1.0},
                                         {224.0, 0.5},
                                         {1.0, 0x1p-8},
                                         {1e-20, 0x1p-75}}) {
      const at::Tensor x = at::full({7}, -largest, dtype);
      const at::Tensor payload = encode(PlainCodec(Fp8{32}), x);
      const at::Tensor head = payload.narrow(0, 0, dtype == at::kFloat ? 4 : 8).view(dtype);
      EXPECT_EQ(head.item<double>(), scale) << largest;
    }
  }
}

TEST(Fp8, AnErrorIsAtMostASixteenth) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor x = testing::normal_values(4096, dtype);
    const at::Tensor error = (coded(PlainCodec(Fp8{1024}), x) - x).abs();
    const at::Tensor bound = (x.abs() / 16).clamp_min(x.abs().max().item<double>() * 0x1p-17);
    EXPECT_TRUE(error.le(bound).all().item<bool>());
    EXPECT_GT((error / x.abs()).max().item<double>(), 1.0 / 20);
  }
}

TEST(Fp8, EveryByteDecodesToItsNumber) {
  at::Tensor payload = at::zeros({4 + 256}, at::kByte);
  payload.narrow(0, 0, 4).view(at::kFloat).fill_(0.5);
  for (int byte = 0; byte < 256; ++byte) payload[4 + byte] = byte;
  at::Tensor got = at::zeros({256});
  PlainCodec(Fp8{256}).decode_add(payload, 1, got);
  EXPECT_EQ(got[0x7e].item<float>(), 224);
  EXPECT_EQ(got[0xfe].item<float>(), -224);
  EXPECT_EQ(got[0x01].item<float>(), 0x1p-10f);
  EXPECT_EQ(got[0x38].item<float>(), 0.5);
  EXPECT_EQ(got.isnan().sum().item<int>(), 2);  // 0x7f and 0xff
  EXPECT_TRUE(got.narrow(0, 0, 127).diff().gt(0).all().item<bool>());
}

TEST(Fp8, ZeroAndDenormalBlocksDecodeToZerosAndNaNsToNaN) {
  const PlainCodec codec(Fp8{32});
  at::Tensor x = at::zeros({96});
  x.narrow(0, 32, 32).fill_(std::numeric_limits<float>::denorm_min());
  x.narrow(0, 64, 32).fill_(1.0f);
  EXPECT_TRUE(coded(codec, x).narrow(0, 0, 64).equal(at::zeros({64})));
  EXPECT_TRUE(coded(codec, x).narrow(0, 64, 32).equal(at::ones({32})));
  x[70] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(coded(codec, x).narrow(0, 64, 32).isnan().all().item<bool>());
  EXPECT_FALSE(codec.finite(encode(codec, x), 96, at::kFloat, 1));
}

TEST(Fp8, OptionsThatCannotBeSayWhatCan) {
  EXPECT_THROW(PlainCodec(Fp8{31}), UsageError);
  EXPECT_THROW(PlainCodec(Fp8{(1 << 24) + 1}), UsageError);
}

}  // namespace
}  // namespace thinwire
