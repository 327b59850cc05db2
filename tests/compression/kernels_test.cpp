// The host's kernels against codec, feedback and exchange in plain code, bit for bit.
#include "collectives/compression/kernels/kernels.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "collectives/compression/codings/list.h"
#include "tests/compression/kernel_cases.h"
#include "tests/reference/codec.h"
#include "tests/reference/feedback.h"

namespace thinwire {
namespace {

using namespace kernel_cases;
using reference::Feedback;
using reference::PlainCodec;

template <typename T>
constexpr at::ScalarType dtype_of = std::is_same_v<T, double> ? at::kDouble : at::kFloat;

// Bytes around a packed message, to see writes beside it; odd, so that nothing in it is aligned.
constexpr std::int64_t guard = 13;

template <typename T>
at::Tensor tensor_of(const std::vector<T>& values) {
  at::Tensor tensor = at::empty({std::ssize(values)}, dtype_of<T>);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<T>());
  return tensor;
}

at::Tensor guarded_bytes(std::int64_t bytes) {
  return at::full({guard + bytes + guard}, 0xA5, at::kByte);
}

at::Tensor payload_of(const at::Tensor& guarded, const Block& block, std::int64_t bytes) {
  return guarded.narrow(0, guard + block.payload, bytes);
}

char* data_of(at::Tensor& guarded) {
  return static_cast<char*>(guarded.mutable_data_ptr()) + guard;
}

PlainCodec codec_of(const Block& block) {
  if (block.format.coding == Coding::raw) return PlainCodec(Uncompressed{});
  return PlainCodec(Sign{(std::max(1, block.count) + 7) / 8 * 8});
}

template <typename T>
void expect_equal_bits(const at::Tensor& got, const at::Tensor& expected, const char* what) {
  ASSERT_EQ(got.numel(), expected.numel());
  EXPECT_EQ(difference(got.const_data_ptr<T>(), expected.const_data_ptr<T>(), got.numel()), "")
      << what;
}

// The guards on both sides too.
template <typename T>
void expect_equal_payloads(const Table& table, at::Tensor got, at::Tensor expected) {
  EXPECT_EQ(payload_difference<T>(table, data_of(got), data_of(expected)), "");
  for (const std::int64_t side : {std::int64_t{0}, guard + table.bytes}) {
    EXPECT_TRUE(got.narrow(0, side, guard).equal(at::full({guard}, 0xA5, at::kByte)));
  }
}

Bucket one_slice(const at::Tensor& gradient) {
  Bucket bucket;
  bucket.gradient = gradient;
  bucket.slices = {Slice{.name = "p", .shape = {gradient.numel()}, .numel = gradient.numel()}};
  return bucket;
}

// The state of a feedback, by name.
class States final : public StateVisitor {
 public:
  void tensor(const StateEntry& entry) override { found.emplace(entry.name, entry.tensor); }
  void counter(const std::string&, std::int64_t&) override {}
  std::map<std::string, at::Tensor> found;
};

at::Tensor state_of(Feedback& feedback, const Bucket& bucket, const std::string& name) {
  States states;
  feedback.visit(bucket, states);
  return states.found.at(name);
}

// What a plain reducer does with each block before it sends.
template <typename T>
void plain_encode(const Table& table, Feedback& feedback, at::Tensor gradient,
                  const at::Tensor& payload) {
  for (const Block& block : table.blocks) {
    const at::Tensor values = gradient.narrow(0, block.begin, block.count);
    if (block.format.coding == Coding::held) {
      feedback.hold(values, block.begin);
      continue;
    }
    const auto codec = codec_of(block);
    const std::int64_t bytes = codec.payload_bytes(block.count, dtype_of<T>);
    ASSERT_EQ(bytes, payload_bytes<T>(block.format, block.count));
    const at::Tensor own = payload_of(payload, block, bytes);
    feedback.compensate(values, block.begin);
    codec.encode(values, own, {});
    feedback.absorb(values, block.begin, codec.codec(), own);
  }
}

template <typename T>
class KernelsTest : public testing::Test {
 public:
  const Kernels<T> kernels = host_kernels<T>();
};
using BothTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(KernelsTest, BothTypes);

TYPED_TEST(KernelsTest, EncodeEqualsThePlainComposition) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const Table table = random_table<TypeParam>(dice);
    const at::Tensor start = tensor_of(random_values<TypeParam>(dice, table, Values::any));
    const at::Tensor residual = tensor_of(random_values<TypeParam>(dice, table, Values::finite));

    Bucket bucket = one_slice(start.clone());
    const auto feedback = reference::make_error_feedback(bucket, {});
    state_of(*feedback, bucket, "residual/p").copy_(residual);
    const at::Tensor expected = guarded_bytes(table.bytes);
    plain_encode<TypeParam>(table, *feedback, bucket.gradient, expected);

    at::Tensor gradient = start.clone();
    at::Tensor payload = guarded_bytes(table.bytes);
    this->kernels.encode({.blocks = table.blocks.data(),
                          .block_count = std::ssize(table.blocks),
                          .gradient = gradient.mutable_data_ptr<TypeParam>(),
                          .residual = {.error = residual.const_data_ptr<TypeParam>()},
                          .payload = data_of(payload)},
                         nullptr);
    expect_equal_payloads<TypeParam>(table, payload, expected);
    expect_equal_bits<TypeParam>(gradient, bucket.gradient, "gradient");
  }
}

TYPED_TEST(KernelsTest, EncodeWithoutFeedbackLeavesTheGradient) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const Table table = random_table<TypeParam>(dice);
    at::Tensor gradient = tensor_of(random_values<TypeParam>(dice, table, Values::any));
    const at::Tensor before = gradient.clone();
    const at::Tensor expected = guarded_bytes(table.bytes);
    plain_encode<TypeParam>(table, *reference::make_no_feedback(), gradient, expected);

    at::Tensor payload = guarded_bytes(table.bytes);
    this->kernels.encode({.blocks = table.blocks.data(),
                          .block_count = std::ssize(table.blocks),
                          .gradient = gradient.mutable_data_ptr<TypeParam>(),
                          .residual = {.error = nullptr},
                          .payload = data_of(payload)},
                         nullptr);
    expect_equal_payloads<TypeParam>(table, payload, expected);
    expect_equal_bits<TypeParam>(gradient, before, "gradient");
  }
}

// The definition in whole numbers, of which nothing is rounded.
TYPED_TEST(KernelsTest, EncodeEqualsTheDefinition) {
  for (const std::int32_t count : {1, 2, 4, 8, 16, 32, 64, 512, 1024}) {
    SCOPED_TRACE(count);
    Dice dice(static_cast<std::uint64_t>(count));
    std::vector<TypeParam> gradient, residual;
    std::vector<double> message;
    double magnitudes = 0;
    for (std::int32_t i = 0; i < count; ++i) {
      gradient.push_back(static_cast<TypeParam>(dice.below(33) - 16));
      residual.push_back(static_cast<TypeParam>(dice.below(33) - 16));
      message.push_back(static_cast<double>(gradient.back()) +
                        static_cast<double>(residual.back()));
      magnitudes += std::abs(message.back());
    }
    const double scale = magnitudes / count;
    const Block block{.count = count, .format = format_of(Sign{}, count)};
    std::vector<char> payload(
        static_cast<std::size_t>(payload_bytes<TypeParam>(block.format, count)));
    this->kernels.encode({.blocks = &block,
                          .block_count = 1,
                          .gradient = gradient.data(),
                          .residual = {.error = residual.data()},
                          .payload = payload.data()},
                         nullptr);
    TypeParam sent;
    std::memcpy(&sent, payload.data(), sizeof(sent));
    EXPECT_EQ(static_cast<double>(sent), scale);
    std::vector<TypeParam> decoded(gradient.size());
    this->kernels.decode(
        {.blocks = &block, .block_count = 1, .payload = payload.data(), .into = decoded.data()},
        nullptr);
    for (std::size_t i = 0; i < message.size(); ++i) {
      const double expected = message[i] < 0 ? -scale : scale;
      EXPECT_EQ(static_cast<double>(decoded[i]), expected);
      EXPECT_EQ(static_cast<double>(gradient[i]), message[i] - expected);
    }
  }
}

enum class Feedbacks { none, errors };

template <typename T>
void expect_plain_owner_reduce(const Kernels<T>& kernels, Dice& dice, std::int32_t ranks,
                               Feedbacks kind) {
  const OwnedChunk owned = random_chunk<T>(dice);
  const Table& chunk = owned.chunk;
  const std::int64_t stride = chunk.bytes + 3;
  at::Tensor arrived = at::full({ranks * stride}, 0x5A, at::kByte);
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    // Few non-finite ranks, or no mean would be finite.
    const Values values = dice.below(ranks + 1) == 0 ? Values::any : Values::finite;
    at::Tensor message = guarded_bytes(chunk.bytes);
    plain_encode<T>(chunk, *reference::make_no_feedback(),
                    tensor_of(random_values<T>(dice, chunk, values)), message);
    arrived.narrow(0, rank * stride, chunk.bytes).copy_(message.narrow(0, guard, chunk.bytes));
  }
  const at::Tensor residual = tensor_of(random_values<T>(dice, chunk, Values::finite))
                                  .narrow(0, owned.begin, owned.end - owned.begin)
                                  .contiguous();

  Bucket bucket = one_slice(at::zeros({chunk.numel}, dtype_of<T>));
  const auto feedback = kind == Feedbacks::none
                            ? reference::make_no_feedback()
                            : reference::make_error_feedback(bucket, {owned.begin, owned.end});
  if (kind == Feedbacks::errors) {
    state_of(*feedback, bucket, "owner_residual/p").copy_(residual);
  }
  at::Tensor mean = at::zeros({owned.end - owned.begin}, dtype_of<T>);
  at::Tensor expected = guarded_bytes(chunk.bytes);
  for (const Block& block : chunk.blocks) {
    if (block.format.coding == Coding::held) {
      feedback->owner_hold(block.begin, block.count);
      continue;
    }
    const auto codec = codec_of(block);
    const std::int64_t bytes = codec.payload_bytes(block.count, dtype_of<T>);
    const at::Tensor values = mean.narrow(0, block.begin - owned.begin, block.count);
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      codec.decode_add(arrived.narrow(0, rank * stride + block.payload, bytes), 1, values);
    }
    if (ranks > 1) values.div_(ranks);
    feedback->owner_compensate(values, block.begin);
    const at::Tensor own = payload_of(expected, block, bytes);
    codec.encode(values, own, {});
    feedback->owner_absorb(values, block.begin, codec.codec(), own);
  }

  // Gaps stay as they are: those of the plain feedback are zero.
  at::Tensor next = at::zeros({owned.end - owned.begin}, dtype_of<T>);
  at::Tensor reply = guarded_bytes(chunk.bytes);
  kernels.owner_reduce(
      {.blocks = owned.blocks(),
       .block_count = std::ssize(chunk.blocks),
       .chunk_begin = owned.begin,
       .payload_begin = owned.payload_begin,
       .arrived = static_cast<const char*>(arrived.const_data_ptr()),
       .stride = stride,
       .ranks = ranks,
       .residual = {.error = kind == Feedbacks::none ? nullptr : residual.const_data_ptr<T>()},
       .owner_next = next.mutable_data_ptr<T>(),
       .reply = data_of(reply)},
      nullptr);
  expect_equal_payloads<T>(chunk, reply, expected);
  if (kind == Feedbacks::none) return;
  feedback->commit(bucket.gradient);
  expect_equal_bits<T>(next, state_of(*feedback, bucket, "owner_residual/p"), "owner residual");
}

TYPED_TEST(KernelsTest, OwnerReduceEqualsThePlainComposition) {
  for (const std::int32_t ranks : {1, 2, 3, 4, 7}) {
    for (const Feedbacks kind : {Feedbacks::none, Feedbacks::errors}) {
      for (std::uint64_t seed = 0; seed < 10; ++seed) {
        SCOPED_TRACE(testing::Message() << ranks << " ranks, seed " << seed);
        Dice dice(100 * seed + static_cast<std::uint64_t>(ranks));
        expect_plain_owner_reduce(this->kernels, dice, ranks, kind);
      }
    }
  }
}

TYPED_TEST(KernelsTest, DecodeEqualsThePlainComposition) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const Table table = random_table<TypeParam>(dice);
    at::Tensor payload = guarded_bytes(table.bytes);
    const at::Tensor values = tensor_of(random_values<TypeParam>(dice, table, Values::any));
    plain_encode<TypeParam>(table, *reference::make_no_feedback(), values, payload);

    at::Tensor got = at::full({table.numel}, 7, dtype_of<TypeParam>);
    at::Tensor expected = got.clone();
    for (const Block& block : table.blocks) {
      const at::Tensor into = expected.narrow(0, block.begin, block.count);
      into.zero_();
      if (block.format.coding == Coding::held) continue;
      codec_of(block).decode_add(
          payload_of(payload, block, payload_bytes<TypeParam>(block.format, block.count)), 1, into);
    }
    this->kernels.decode({.blocks = table.blocks.data(),
                          .block_count = std::ssize(table.blocks),
                          .payload = data_of(payload),
                          .into = got.mutable_data_ptr<TypeParam>()},
                         nullptr);
    expect_equal_bits<TypeParam>(got, expected, "decoded");
  }
}

TYPED_TEST(KernelsTest, FirstNonFiniteNamesTheLowestSlice) {
  int finite_tables = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const Table table = random_table<TypeParam>(dice);
    at::Tensor payload = guarded_bytes(table.bytes);
    const at::Tensor values = tensor_of(
        random_values<TypeParam>(dice, table, seed % 4 == 0 ? Values::finite : Values::any));
    plain_encode<TypeParam>(table, *reference::make_no_feedback(), values, payload);

    std::int32_t expected = INT32_MAX;
    for (const Block& block : table.blocks) {
      if (block.format.coding == Coding::held) continue;
      const std::int64_t bytes = payload_bytes<TypeParam>(block.format, block.count);
      const bool finite = codec_of(block).finite(payload_of(payload, block, bytes), block.count,
                                                 dtype_of<TypeParam>, 1);
      if (!finite) expected = std::min(expected, block.slice);
    }
    finite_tables += expected == INT32_MAX ? 1 : 0;
    std::int32_t flag = INT32_MAX;
    const FirstNonFiniteArgs<TypeParam> args{.blocks = table.blocks.data(),
                                             .block_count = std::ssize(table.blocks),
                                             .payload = data_of(payload),
                                             .flag = &flag};
    this->kernels.first_non_finite(args, nullptr);
    EXPECT_EQ(flag, expected);
    // An earlier finding stays.
    flag = -1;
    this->kernels.first_non_finite(args, nullptr);
    EXPECT_EQ(flag, -1);
  }
  EXPECT_GT(finite_tables, 0);
  EXPECT_LT(finite_tables, 40);
}

TYPED_TEST(KernelsTest, MeanAndCheckEqualsThePlainComposition) {
  for (const std::int32_t ranks : {1, 2, 3, 4, 7}) {
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, seed " << seed);
      Dice dice(seed);
      const Table table = random_table<TypeParam>(dice);
      const at::Tensor sum = tensor_of(
          random_values<TypeParam>(dice, table, seed % 2 == 0 ? Values::finite : Values::any));
      at::Tensor expected = sum.clone();
      std::int32_t first = INT32_MAX;
      for (const Block& block : table.blocks) {
        const at::Tensor values = expected.narrow(0, block.begin, block.count);
        if (!reference::all_finite(values)) first = std::min(first, block.slice);
        if (ranks > 1) values.div_(ranks);
      }
      at::Tensor got = sum.clone();
      std::int32_t flag = INT32_MAX;
      this->kernels.mean_and_check({.blocks = table.blocks.data(),
                                    .block_count = std::ssize(table.blocks),
                                    .gradient = got.mutable_data_ptr<TypeParam>(),
                                    .ranks = ranks,
                                    .flag = &flag},
                                   nullptr);
      EXPECT_EQ(flag, first);
      expect_equal_bits<TypeParam>(got, expected, "mean");
    }
  }
}

// The check may not overflow where the values do not.
TYPED_TEST(KernelsTest, TheLargestValuesAreFinite) {
  const Block block{.count = 2, .slice = 5};
  const TypeParam huge = std::numeric_limits<TypeParam>::max();
  TypeParam values[] = {huge, -huge};
  std::int32_t flag = INT32_MAX;
  const MeanAndCheckArgs<TypeParam> args{
      .blocks = &block, .block_count = 1, .gradient = values, .ranks = 2, .flag = &flag};
  this->kernels.mean_and_check(args, nullptr);
  EXPECT_EQ(flag, INT32_MAX);
  EXPECT_EQ(values[0], huge / 2);
  values[1] = std::numeric_limits<TypeParam>::infinity();
  this->kernels.mean_and_check(args, nullptr);
  EXPECT_EQ(flag, 5);
}

TYPED_TEST(KernelsTest, NoBlocksDoNothing) {
  std::int32_t flag = 3;
  this->kernels.average({}, nullptr);
  this->kernels.encode({}, nullptr);
  this->kernels.owner_reduce({}, nullptr);
  this->kernels.form_error({}, nullptr);
  this->kernels.first_non_finite({.flag = &flag}, nullptr);
  this->kernels.decode({}, nullptr);
  this->kernels.mean_and_check({.flag = &flag}, nullptr);
  EXPECT_EQ(flag, 3);
}

}  // namespace
}  // namespace thinwire
