// Encoding and reducing, every coding and feedback on every kind of vectors of this machine,
// against plain loops, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "collectives/compression/kernels/host.h"
#include "tests/compression/kernel_cases.h"
#include "tests/compression/kernel_oracle.h"

namespace thinwire {
namespace {

using namespace kernel_cases;

// Bytes on both sides of a payload, to see writes beside it; odd, so that nothing is aligned.
constexpr std::int64_t guard = 13;
constexpr char guard_byte = 0x5A;

std::vector<char> guarded(std::int64_t bytes) {
  return std::vector<char>(static_cast<std::size_t>(guard + bytes + guard), guard_byte);
}

void expect_guards(const std::vector<char>& payload) {
  for (std::int64_t i = 0; i < guard; ++i) {
    ASSERT_EQ(payload[static_cast<std::size_t>(i)], guard_byte);
    ASSERT_EQ(payload[payload.size() - 1 - static_cast<std::size_t>(i)], guard_byte);
  }
}

template <typename T>
void expect_equal(const std::vector<T>& got, const std::vector<T>& expected, const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  EXPECT_EQ(difference(got.data(), expected.data(), std::ssize(got)), "") << what;
}

std::string describe(const Block& block) {
  const Format& f = block.format;
  return fmt::format("{} values, coding {}, variant {}, {} bits, {} entries", block.count,
                     static_cast<int>(f.coding), f.variant, f.bits, f.entries);
}

enum class Feedbacks { none, errors, messages, tracked };
constexpr Feedbacks all_feedbacks[] = {Feedbacks::none, Feedbacks::errors, Feedbacks::messages,
                                       Feedbacks::tracked};

// The residuals of a bucket or of a chunk.
template <typename T>
struct Residuals {
  std::vector<T> error;
  std::vector<T> tracker;
  std::vector<T> eta;
  std::vector<T> sent;
  // From an element of the bucket and a block of the table on.
  Residual<T> from(std::int64_t begin, std::size_t block, Feedbacks kind) const {
    if (kind == Feedbacks::none) return {};
    if (kind == Feedbacks::errors) return {.error = error.data() + begin};
    if (kind == Feedbacks::messages) {
      return {.error = error.data() + begin, .sent = sent.data() + block};
    }
    return {.error = error.data() + begin, .tracker = tracker.data() + begin, .eta = eta.data()};
  }
};

template <typename T>
Residuals<T> random_residuals(Dice& dice, const Table& table) {
  Residuals<T> residuals;
  residuals.error = random_values<T>(dice, table, Values::finite);
  residuals.tracker = random_values<T>(dice, table, Values::finite);
  for (int slice = 0; slice < 12; ++slice) {
    residuals.eta.push_back(static_cast<T>(dice.uniform()));
  }
  for (std::size_t b = 0; b < table.blocks.size(); ++b) {
    residuals.sent.push_back(dice.below(4) == 0 ? T{0} : static_cast<T>(dice.uniform()));
  }
  return residuals;
}

template <typename T>
std::vector<T> part(const std::vector<T>& all, std::int64_t begin, std::int64_t count) {
  // Not of two iterators: GCC 12 warns of its own vector then.
  std::vector<T> some(static_cast<std::size_t>(count));
  std::copy_n(all.begin() + begin, count, some.begin());
  return some;
}

template <typename T>
class KernelCodingsTest : public testing::Test {
 public:
  const std::vector<NamedKernels<T>> targets = host_kernels_by_form<T>();
};
using BothTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(KernelCodingsTest, BothTypes);

template <typename T>
void expect_encoded(const Kernels<T>& kernels, Dice& dice, const Table& table, Values values,
                    Feedbacks kind) {
  const std::vector<T> start = random_values<T>(dice, table, values);
  const Residuals<T> residuals = random_residuals<T>(dice, table);
  const std::uint64_t key = 0x123456789abcdef0u + static_cast<std::uint64_t>(dice.below(1000));

  std::vector<T> gradient = start;
  std::vector<T> energy(2 * table.blocks.size(), T{7});
  std::vector<char> payload = guarded(table.bytes);
  const bool keeps_messages = kind == Feedbacks::messages;
  const bool with_energy = !keeps_messages && dice.below(2) == 0;
  std::vector<T> sent_next(table.blocks.size(), T{7});
  kernels.encode({.blocks = table.blocks.data(),
                  .block_count = std::ssize(table.blocks),
                  .gradient = gradient.data(),
                  .residual = residuals.from(0, 0, kind),
                  .payload = payload.data() + guard,
                  .rounding_key = key,
                  .energy = with_energy ? energy.data() : nullptr,
                  .sent_next = keeps_messages ? sent_next.data() : nullptr},
                 nullptr);
  expect_guards(payload);

  std::vector<T> expected = start;
  for (std::size_t b = 0; b < table.blocks.size(); ++b) {
    const Block& block = table.blocks[b];
    if (block.count == 0) continue;
    SCOPED_TRACE(testing::Message() << "block " << b << ": " << describe(block));
    const auto coded = kernel_oracle::code(block, part(start, block.begin, block.count),
                                           residuals.from(block.begin, b, kind), key);
    const auto sent = part(payload, guard + block.payload, std::ssize(coded.payload));
    const Table alone{{{.count = block.count, .format = block.format}}, block.count, 0};
    EXPECT_EQ(payload_difference<T>(alone, sent.data(), coded.payload.data()), "");
    expect_equal(part(gradient, block.begin, block.count), coded.next, "gradient");
    std::copy(coded.next.begin(), coded.next.end(), expected.begin() + block.begin);
    if (keeps_messages)
      expect_equal(part(sent_next, static_cast<std::int64_t>(b), 1), {coded.sent}, "sent");
    if (!with_energy) continue;
    expect_equal(part(energy, 2 * static_cast<std::int64_t>(b), 2),
                 std::vector<T>(coded.energy, coded.energy + 2), "energy");
    if (testing::Test::HasFailure()) return;
  }
  expect_equal(gradient, expected, "gaps between blocks");
}

TYPED_TEST(KernelCodingsTest, EncodeIsTheDefinition) {
  for (const auto& [target, kernels] : this->targets) {
    for (const Feedbacks kind : all_feedbacks) {
      for (std::uint64_t seed = 0; seed < 40; ++seed) {
        SCOPED_TRACE(testing::Message()
                     << target << ", feedback " << static_cast<int>(kind) << ", seed " << seed);
        Dice dice(seed);
        const Table table = random_table<TypeParam>(dice, random_format);
        expect_encoded(kernels, dice, table, seed % 2 == 0 ? Values::any : Values::finite, kind);
        if (this->HasFailure()) return;
      }
    }
  }
}

// Blocks with many equal values, and of more than one tile.
TYPED_TEST(KernelCodingsTest, TopKOfLargeBlocksAndOfTies) {
  constexpr std::int32_t count = 10'007;
  for (const auto& [target, kernels] : this->targets) {
    for (const std::int64_t kinds : {1, 2, 5, 1000, 1'000'000}) {
      for (const std::int32_t kept : {1, 3, 100, 101, 1000, 5000, count}) {
        for (const Selection selection : {Selection::threshold, Selection::exact}) {
          SCOPED_TRACE(testing::Message() << target << ", " << kinds << " values, kept " << kept
                                          << ", selection " << static_cast<int>(selection));
          Dice dice(static_cast<std::uint64_t>(kinds));
          Block block{.count = count, .format = format_of(TopK{.selection = selection}, count)};
          block.format.entries = kept;
          std::vector<TypeParam> gradient;
          for (std::int32_t i = 0; i < count; ++i) {
            const auto size = static_cast<TypeParam>(dice.below(kinds + 1)) / 64;
            gradient.push_back(dice.below(2) == 0 ? size : -size);
          }
          const auto coded = kernel_oracle::code<TypeParam>(block, gradient, {}, 0);
          std::vector<char> payload(coded.payload.size(), guard_byte);
          kernels.encode({.blocks = &block,
                          .block_count = 1,
                          .gradient = gradient.data(),
                          .residual = {},
                          .payload = payload.data()},
                         nullptr);
          ASSERT_EQ(payload, coded.payload);
          std::vector<TypeParam> decoded(count);
          kernels.decode({.blocks = &block,
                          .block_count = 1,
                          .payload = payload.data(),
                          .into = decoded.data()},
                         nullptr);
          expect_equal(decoded,
                       kernel_oracle::mean_of_block<TypeParam>(block, payload.data(), 0, 1),
                       "decoded");
          if (this->HasFailure()) return;
        }
      }
    }
  }
}

template <typename T>
void expect_owner_reduced(const Kernels<T>& kernels, Dice& dice, std::int32_t ranks,
                          Feedbacks kind) {
  const OwnedChunk owned = random_chunk<T>(dice, random_format);
  const Table& chunk = owned.chunk;
  const std::int64_t stride = chunk.bytes + 3;
  std::vector<char> arrived(static_cast<std::size_t>(ranks * stride), guard_byte);
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    // Few non-finite ranks, or no mean would be finite.
    const Values values = dice.below(ranks + 1) == 0 ? Values::any : Values::finite;
    const std::vector<T> message = random_values<T>(dice, chunk, values);
    for (const Block& block : chunk.blocks) {
      const std::vector<char> payload = reference::encode_block(
          block.format, part(message, block.begin, block.count), 3, block.begin);
      std::copy(payload.begin(), payload.end(), arrived.begin() + rank * stride + block.payload);
    }
  }
  Residuals<T> residuals = random_residuals<T>(dice, chunk);
  const std::vector<T> tracker = random_values<T>(dice, chunk, Values::finite);
  const auto size = static_cast<std::size_t>(chunk.numel);
  std::vector<T> next(size, T{7});
  std::vector<T> tracker_next(size, T{7});
  std::vector<char> reply = guarded(chunk.bytes);
  const bool tracked = kind == Feedbacks::tracked;
  std::vector<T> sent_next(chunk.blocks.size(), T{7});
  // The kernel's pointers begin with the chunk.
  kernels.owner_reduce({.blocks = owned.blocks(),
                        .block_count = std::ssize(chunk.blocks),
                        .chunk_begin = owned.begin,
                        .payload_begin = owned.payload_begin,
                        .arrived = arrived.data(),
                        .stride = stride,
                        .ranks = ranks,
                        .residual = residuals.from(owned.begin, 0, kind),
                        .owner_next = next.data() + owned.begin,
                        .mean_tracker = tracked ? tracker.data() + owned.begin : nullptr,
                        .mean_tracker_next = tracked ? tracker_next.data() + owned.begin : nullptr,
                        .reply = reply.data() + guard,
                        .rounding_key = 99,
                        .sent_next = kind == Feedbacks::messages ? sent_next.data() : nullptr},
                       nullptr);
  expect_guards(reply);

  std::vector<T> expected_next(size, T{7});
  std::vector<T> expected_tracker(size, T{7});
  for (std::size_t b = 0; b < chunk.blocks.size(); ++b) {
    const Block& block = chunk.blocks[b];
    if (block.count == 0) continue;
    SCOPED_TRACE(describe(block));
    const auto kept_tracker = part(tracker, block.begin, block.count);
    std::vector<T> g(static_cast<std::size_t>(block.count), T{7});
    if (block.format.coding != Coding::held) {
      g = kernel_oracle::mean_of_block<T>(block, arrived.data() + block.payload, stride, ranks);
    }
    std::vector<T> estimate = kept_tracker;
    if (tracked && block.format.coding != Coding::held) {
      for (std::size_t i = 0; i < g.size(); ++i) g[i] = estimate[i] = kept_tracker[i] + g[i];
    }
    const auto coded = kernel_oracle::code(block, g, residuals.from(block.begin, b, kind), 99);
    if (kind == Feedbacks::messages) {
      expect_equal(part(sent_next, static_cast<std::int64_t>(b), 1), {coded.sent}, "sent");
    }
    const auto sent = part(reply, guard + block.payload, std::ssize(coded.payload));
    const Table alone{{{.count = block.count, .format = block.format}}, block.count, 0};
    EXPECT_EQ(payload_difference<T>(alone, sent.data(), coded.payload.data()), "");
    std::copy(coded.next.begin(), coded.next.end(), expected_next.begin() + block.begin);
    if (tracked)
      std::copy(estimate.begin(), estimate.end(), expected_tracker.begin() + block.begin);
  }
  if (kind != Feedbacks::none) expect_equal(next, expected_next, "owner residual");
  expect_equal(tracker_next, expected_tracker, "mean tracker");
}

TYPED_TEST(KernelCodingsTest, AverageIsTheDefinition) {
  using T = TypeParam;
  for (const auto& [target, kernels] : this->targets) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(testing::Message() << target << ", seed " << seed);
      Dice dice(seed);
      const Table table = random_table<T>(dice, random_format);
      const std::vector<T> start = random_values<T>(dice, table, Values::any);
      const std::vector<T> momentum = random_values<T>(dice, table, Values::finite);
      const T keep = static_cast<T>(dice.uniform());
      const T share = 1 - keep;
      std::vector<T> gradient = start;
      std::vector<T> next(start.size(), T{7});
      kernels.average({.blocks = table.blocks.data(),
                       .block_count = std::ssize(table.blocks),
                       .gradient = gradient.data(),
                       .momentum = momentum.data(),
                       .momentum_next = next.data(),
                       .keep = keep,
                       .share = share},
                      nullptr);
      std::vector<T> expected = start;
      std::vector<T> expected_next(start.size(), T{7});
      for (const Block& block : table.blocks) {
        for (auto i = static_cast<std::size_t>(block.begin);
             i < static_cast<std::size_t>(block.begin + block.count); ++i) {
          expected_next[i] = momentum[i];
          if (block.format.coding == Coding::held) continue;
          expected[i] = expected_next[i] = keep * momentum[i] + share * start[i];
        }
      }
      expect_equal(gradient, expected, "gradient");
      expect_equal(next, expected_next, "momentum");
      if (this->HasFailure()) return;
    }
  }
}

TYPED_TEST(KernelCodingsTest, FormErrorIsTheDefinition) {
  using T = TypeParam;
  for (const auto& [target, kernels] : this->targets) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(testing::Message() << target << ", seed " << seed);
      Dice dice(seed);
      const OwnedChunk owned = random_chunk<T>(dice, random_format);
      const Table& chunk = owned.chunk;
      const Residuals<T> residuals = random_residuals<T>(dice, chunk);
      std::vector<T> error = residuals.error;
      std::vector<T> sent = residuals.sent;
      kernels.form_error({.blocks = owned.blocks(),
                          .block_count = std::ssize(chunk.blocks),
                          .error = error.data() + owned.begin,
                          .sent = sent.data(),
                          .chunk_begin = owned.begin},
                         nullptr);
      std::vector<T> expected = residuals.error;
      for (std::size_t b = 0; b < chunk.blocks.size(); ++b) {
        const Block& block = chunk.blocks[b];
        const auto formed = kernel_oracle::form_error(
            part(residuals.error, block.begin, block.count), residuals.sent[b]);
        std::copy(formed.begin(), formed.end(), expected.begin() + block.begin);
        if (block.count > 0) {
          ASSERT_EQ(sent[b], 0);
        }
      }
      expect_equal(error, expected, "error");
      if (this->HasFailure()) return;
    }
  }
}

TYPED_TEST(KernelCodingsTest, OwnerReduceIsTheDefinition) {
  for (const auto& [target, kernels] : this->targets) {
    for (const std::int32_t ranks : {1, 2, 3, 7}) {
      for (const Feedbacks kind : all_feedbacks) {
        for (std::uint64_t seed = 0; seed < 10; ++seed) {
          SCOPED_TRACE(testing::Message() << target << ", " << ranks << " ranks, feedback "
                                          << static_cast<int>(kind) << ", seed " << seed);
          Dice dice(100 * seed + static_cast<std::uint64_t>(ranks));
          expect_owner_reduced(kernels, dice, ranks, kind);
          if (this->HasFailure()) return;
        }
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
