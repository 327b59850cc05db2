// Reading payloads, good ones and any bytes, on every kind of vectors of this machine, against
// plain loops, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "collectives/compression/codings/list.h"
#include "collectives/compression/kernels/host.h"
#include "tests/compression/kernel_cases.h"
#include "tests/compression/kernel_oracle.h"

namespace thinwire {
namespace {

using namespace kernel_cases;

// Whole packed messages of some ranks, each in memory of exactly its size but for the gap.
struct Messages {
  std::int64_t stride = 0;
  std::int32_t ranks = 1;
  std::vector<char> bytes;
};

template <typename T>
Messages encoded_messages(Dice& dice, const Table& table, std::int32_t ranks) {
  Messages messages{.stride = table.bytes + dice.below(4), .ranks = ranks, .bytes = {}};
  messages.bytes.resize(static_cast<std::size_t>((ranks - 1) * messages.stride + table.bytes));
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    const Values values = dice.below(2 * ranks) == 0 ? Values::any : Values::finite;
    const std::vector<T> all = random_values<T>(dice, table, values);
    for (const Block& block : table.blocks) {
      const std::vector<T> m(all.begin() + block.begin, all.begin() + block.begin + block.count);
      const auto payload = reference::encode_block(block.format, m, 5, block.begin);
      std::copy(payload.begin(), payload.end(),
                messages.bytes.begin() + rank * messages.stride + block.payload);
    }
  }
  return messages;
}

// Some bytes become others, and some numbers of kept values small enough to be believed.
template <typename T>
void spoil(Dice& dice, const Table& table, Messages& messages) {
  for (std::int32_t rank = 0; rank < messages.ranks; ++rank) {
    for (const Block& block : table.blocks) {
      const std::int64_t bytes = payload_bytes<T>(block.format, block.count);
      if (bytes == 0) continue;
      char* payload = messages.bytes.data() + rank * messages.stride + block.payload;
      const std::int64_t kind = dice.below(4);
      if (kind == 0) {
        for (std::int64_t i = 0; i < bytes; ++i) payload[i] = static_cast<char>(dice.below(256));
      } else if (kind == 1) {
        payload[dice.below(bytes)] = static_cast<char>(dice.below(256));
      }
      if (kind <= 1 && block.format.coding == number_of<TopK>) {
        reference::put(payload, static_cast<std::uint32_t>(dice.below(block.format.entries + 2)));
      }
    }
  }
}

template <typename T>
class KernelPayloadsTest : public testing::Test {
 public:
  const std::vector<NamedKernels<T>> targets = host_kernels_by_form<T>();
};
using BothTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(KernelPayloadsTest, BothTypes);

template <typename T>
void expect_read(const Kernels<T>& kernels, Dice& dice, const Table& table,
                 const Messages& messages) {
  const std::vector<T> start = random_values<T>(dice, table, Values::finite);
  std::vector<T> decoded = start;
  std::vector<T> integrated = start;
  std::int32_t flag = INT32_MAX;
  const std::int64_t count = std::ssize(table.blocks);
  DecodeArgs<T> args{.blocks = table.blocks.data(),
                     .block_count = count,
                     .payload = messages.bytes.data(),
                     .stride = messages.stride,
                     .ranks = messages.ranks,
                     .into = decoded.data()};
  kernels.decode(args, nullptr);
  args.into = integrated.data();
  kernels.integrate(args, nullptr);
  kernels.first_non_finite({.blocks = table.blocks.data(),
                            .block_count = count,
                            .payload = messages.bytes.data(),
                            .stride = messages.stride,
                            .ranks = messages.ranks,
                            .flag = &flag},
                           nullptr);

  std::vector<T> expected_decoded = start;
  std::vector<T> expected_integrated = start;
  std::int32_t expected_flag = INT32_MAX;
  for (const Block& block : table.blocks) {
    if (block.count == 0) continue;
    const auto begin = static_cast<std::size_t>(block.begin);
    const char* payload = messages.bytes.data() + block.payload;
    std::vector<T> mean(static_cast<std::size_t>(block.count));
    if (block.format.coding != Coding::held) {
      mean = kernel_oracle::mean_of_block<T>(block, payload, messages.stride, messages.ranks);
    }
    std::copy(mean.begin(), mean.end(), expected_decoded.begin() + block.begin);
    if (block.format.coding == Coding::held) continue;
    for (std::size_t i = 0; i < mean.size(); ++i) expected_integrated[begin + i] += mean[i];
    for (std::int32_t rank = 0; rank < messages.ranks; ++rank) {
      if (!reference::finite_block<T>(block.format, block.count, payload + rank * messages.stride,
                                      messages.ranks)) {
        expected_flag = std::min(expected_flag, block.slice);
      }
    }
  }
  EXPECT_EQ(flag, expected_flag);
  for (const Block& block : table.blocks) {
    const auto coding = static_cast<int>(block.format.coding);
    EXPECT_EQ(difference(decoded.data() + block.begin, expected_decoded.data() + block.begin,
                         block.count),
              "")
        << "decode, coding " << coding << ", " << block.count << " values";
    EXPECT_EQ(difference(integrated.data() + block.begin, expected_integrated.data() + block.begin,
                         block.count),
              "")
        << "integrate, coding " << coding << ", " << block.count << " values";
  }
  EXPECT_EQ(difference(decoded.data(), expected_decoded.data(), table.numel), "");
  EXPECT_EQ(difference(integrated.data(), expected_integrated.data(), table.numel), "");
}

TYPED_TEST(KernelPayloadsTest, ReadingIsTheDefinition) {
  for (const auto& [target, kernels] : this->targets) {
    for (const std::int32_t ranks : {1, 2, 3, 8}) {
      for (std::uint64_t seed = 0; seed < 15; ++seed) {
        SCOPED_TRACE(testing::Message() << target << ", " << ranks << " ranks, seed " << seed);
        Dice dice(seed);
        const Table table = random_table<TypeParam>(dice, random_format);
        expect_read(kernels, dice, table, encoded_messages<TypeParam>(dice, table, ranks));
        if (this->HasFailure()) return;
      }
    }
  }
}

TYPED_TEST(KernelPayloadsTest, AnyBytesAreReadTheSame) {
  for (const auto& [target, kernels] : this->targets) {
    for (const std::int32_t ranks : {1, 2, 3}) {
      for (std::uint64_t seed = 0; seed < 40; ++seed) {
        SCOPED_TRACE(testing::Message() << target << ", " << ranks << " ranks, seed " << seed);
        Dice dice(1000 + seed);
        const Table table = random_table<TypeParam>(dice, random_format);
        Messages messages = encoded_messages<TypeParam>(dice, table, ranks);
        spoil<TypeParam>(dice, table, messages);
        expect_read(kernels, dice, table, messages);
        if (this->HasFailure()) return;
      }
    }
  }
}

// Every number of 16 bits, and every float whose rounding is a tie or next to one.
TEST(KernelCastTest, EveryHalfIsExact) {
  for (const auto& [target, kernels] : host_kernels_by_form<float>()) {
    for (const Half half : {Half::fp16, Half::bf16}) {
      SCOPED_TRACE(testing::Message() << target << ", half " << static_cast<int>(half));
      const Format format = format_of(Cast{half}, 32);
      std::vector<float> values;
      for (std::uint32_t bits = 0; bits < 0x8000; ++bits) {
        const auto here = static_cast<float>(reference::half_value(half, bits));
        if (!std::isfinite(here)) continue;
        const auto next = static_cast<float>(reference::half_value(half, bits + 1));
        const float middle = here / 2 + next / 2;
        for (const float x :
             {here, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
          values.push_back(bits % 2 == 0 ? x : -x);
        }
      }
      const Block block{.count = static_cast<std::int32_t>(values.size()), .format = format};
      const auto expected = reference::encode_block(format, values, 0, 0);
      std::vector<char> payload(expected.size());
      kernels.encode({.blocks = &block,
                      .block_count = 1,
                      .gradient = values.data(),
                      .residual = {},
                      .payload = payload.data()},
                     nullptr);
      for (std::size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(reference::get<std::uint16_t>(payload.data() + 2 * i),
                  reference::get<std::uint16_t>(expected.data() + 2 * i))
            << values[i];
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
