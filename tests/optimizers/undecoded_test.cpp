// What is done with a gradient that came over the wire, tile by tile, against the same done with
// its decoded values in memory: equal bits.
#include "collectives/compression/undecoded.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "collectives/compression/codings/list.h"
#include "optimizers/clipping.h"
#include "optimizers/factory.h"
#include "tests/compression/kernel_cases.h"
#include "tests/optimizers/cases.h"
#include "tests/optimizers/support.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using kernel_cases::Dice;

template <typename T>
class CodedGradients : public testing::Test {
 public:
  static constexpr at::ScalarType dtype =
      std::is_same_v<T, double> ? torch::kDouble : torch::kFloat;
};
using BothTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(CodedGradients, BothTypes);

template <typename T>
T pick(Dice& dice, std::initializer_list<T> from) {
  return *(from.begin() + dice.below(static_cast<std::int64_t>(from.size())));
}

// One bucket with a gradient in memory, the same bucket with it coded, and the message.
template <typename T>
struct Case {
  std::vector<Bucket> values = std::vector<Bucket>(1);
  std::vector<Bucket> coded;
  at::Tensor message;
};

// Slices of odd sizes with gaps of NaN between them, some of them frozen or absent, in blocks of
// any coding whose payloads lie in another order than their values.
template <typename T>
std::unique_ptr<Case<T>> random_case(Dice& dice, at::ScalarType dtype) {
  auto made = std::make_unique<Case<T>>();
  Bucket& bucket = made->values[0];
  std::int64_t numel = 0;
  for (int s = 0; s < 5; ++s) {
    const auto size = pick<std::int64_t>(dice, {1, 7, 33, 1000, 1024, 1025, 3000, 4096, 9000});
    bucket.slices.push_back({.name = std::string(1, static_cast<char>('a' + s)),
                             .shape = {size},
                             .offset = numel,
                             .numel = size,
                             .absent = dice.below(5) == 0});
    numel += (size + 15) / 16 * 16 + 16;
  }
  for (std::size_t s = 0; s < bucket.slices.size(); ++s) {
    resting::set_frozen(bucket, s, dice.below(5) == 0);
  }
  const auto options = torch::dtype(dtype);
  bucket.weights = torch::full({numel}, std::numeric_limits<T>::quiet_NaN(), options);
  bucket.gradient = bucket.weights.clone();
  kernel_cases::Table table;
  for (std::size_t s = 0; s < bucket.slices.size(); ++s) {
    const Slice& slice = bucket.slices[s];
    const auto block_size = pick<std::int64_t>(dice, {32, 96, 512, 1024, 1056, 4096});
    for (std::int64_t i = 0; i < slice.numel; ++i) {
      bucket.weights[slice.offset + i] = 2 * dice.uniform() - 1;
      bucket.gradient[slice.offset + i] = 2 * dice.uniform() - 1;
    }
    for (std::int64_t done = 0; done < slice.numel; done += block_size) {
      Block block;
      block.begin = slice.offset + done;
      block.count = static_cast<std::int32_t>(std::min(block_size, slice.numel - done));
      block.slice = static_cast<std::int32_t>(s);
      block.format = kernel_cases::random_format(dice, block.count);
      if (block.format.coding == Coding::held) block.format.coding = Coding::raw;
      if (bucket.layout.rests(s)) block.format.coding = Coding::held;
      table.blocks.push_back(block);
    }
  }
  for (std::size_t b = table.blocks.size(); b > 1; --b) {
    std::swap(table.blocks[b - 1],
              table.blocks[static_cast<std::size_t>(dice.below(static_cast<std::int64_t>(b)))]);
  }
  for (Block& block : table.blocks) {
    block.payload = table.bytes;
    table.bytes += payload_bytes<T>(block.format, block.count);
  }
  made->message = torch::empty({table.bytes}, torch::kByte);
  char* const payload = static_cast<char*>(made->message.data_ptr());
  const auto count = static_cast<std::int64_t>(table.blocks.size());
  host_kernels<T>().encode({.blocks = table.blocks.data(),
                            .block_count = count,
                            .gradient = bucket.gradient.template data_ptr<T>(),
                            .residual = {},
                            .payload = payload},
                           nullptr);
  made->coded = clone(made->values);
  host_kernels<T>().decode({.blocks = table.blocks.data(),
                            .block_count = count,
                            .payload = payload,
                            .into = bucket.gradient.template data_ptr<T>()},
                           nullptr);
  for (const Slice& slice : bucket.slices) {
    if (slice.absent) part(bucket.gradient, slice).zero_();
  }
  auto coded = std::make_shared<UndecodedEstimate>();
  std::ranges::copy_if(table.blocks, std::back_inserter(coded->blocks),
                       [](const Block& block) { return block.format.coding != Coding::held; });
  std::ranges::sort(coded->blocks, {}, &Block::begin);
  coded->message = made->message;
  made->coded[0].undecoded = coded;
  made->coded[0].gradient.fill_(std::numeric_limits<T>::quiet_NaN());
  return made;
}

template <typename T>
std::string difference(const at::Tensor& a, const at::Tensor& b) {
  return kernel_cases::difference(a.const_data_ptr<T>(), b.const_data_ptr<T>(), a.numel());
}

TYPED_TEST(CodedGradients, ComeInTilesThatCoverEverySliceThatMoves) {
  using T = TypeParam;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    Dice dice(seed);
    const auto made = random_case<T>(dice, this->dtype);
    const Bucket& bucket = made->values[0];
    at::Tensor got = torch::full_like(bucket.gradient, std::numeric_limits<T>::quiet_NaN());
    std::int64_t end = 0;
    for_each_tile<T>(made->coded[0], {}, [&](const DecodedTile<T>& tile) {
      const Slice& slice = bucket.slices.at(static_cast<std::size_t>(tile.slice));
      EXPECT_GE(tile.begin, end);
      EXPECT_EQ((tile.begin - slice.offset) % tile_step, 0);
      EXPECT_TRUE(tile.begin + tile.count == slice.end() || tile.count % tile_step == 0);
      end = tile.begin + tile.count;
      std::copy_n(tile.values, tile.count, got.data_ptr<T>() + tile.begin);
    });
    for (const Slice& slice : bucket.slices) {
      if (resting::rests(bucket, slice)) part(got, slice).zero_();
    }
    EXPECT_EQ(difference<T>(got, bucket.gradient), "");
  }
}

TYPED_TEST(CodedGradients, HaveTheNormOfTheirValues) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    Dice dice(seed);
    const auto made = random_case<TypeParam>(dice, this->dtype);
    // With another bucket behind, whose gradient lies in memory.
    made->coded.push_back(made->values[0]);
    made->values.push_back(made->values[0]);
    EXPECT_EQ(squared_norm(made->coded), squared_norm(made->values)) << seed;
  }
}

TYPED_TEST(CodedGradients, MoveTheWeightsAsTheirValuesDo) {
  using T = TypeParam;
  const GroupRules rules = {{.rank = SliceRank::vectors, .weight_decay = 0.1, .lr_scale = 0.3}};
  for (const std::string& spec : optimizer_cases()) {
    for (std::uint64_t seed = 0; seed < 15; ++seed) {
      SCOPED_TRACE(fmt::format("{}, seed {}", spec, seed));
      Dice dice(seed);
      const auto made = random_case<T>(dice, this->dtype);
      const auto expected = make_optimizer(spec, {}, made->values, rules);
      const auto got = make_optimizer(spec, {}, made->coded, rules);
      for (std::int64_t t = 0; t < 3; ++t) {
        const StepParameters parameters{.lr = 0.1, .gradient_scale = 0.7, .committed_step = t};
        step(*expected, made->values, parameters);
        step(*got, made->coded, parameters);
      }
      EXPECT_EQ(difference<T>(made->coded[0].weights, made->values[0].weights), "");
      Collector expected_state;
      Collector got_state;
      expected->visit(expected_state);
      got->visit(got_state);
      for (const auto& [name, entry] : expected_state.entries) {
        const at::Tensor& tensor = got_state.entries.at(name).tensor;
        if (tensor.scalar_type() == this->dtype) {
          EXPECT_EQ(difference<T>(tensor, entry.tensor), "") << name;
        } else {
          EXPECT_TRUE(tensor.equal(entry.tensor)) << name;
        }
      }
    }
  }
}

TEST(UndecodedEstimate, Of16BitWeightsMovesTheirMaster) {
  for (const std::string& spec : optimizer_cases()) {
    Dice dice(3);
    const auto made = random_case<float>(dice, torch::kFloat);
    for (auto* buckets : {&made->values, &made->coded}) {
      (*buckets)[0].weights = (*buckets)[0].weights.to(torch::kBFloat16);
    }
    const auto expected = make_optimizer(spec, {}, made->values);
    const auto got = make_optimizer(spec, {}, made->coded);
    step(*expected, made->values, {.lr = 0.1});
    step(*got, made->coded, {.lr = 0.1});
    EXPECT_EQ(difference<float>(made->coded[0].weights.to(torch::kFloat),
                                made->values[0].weights.to(torch::kFloat)),
              "")
        << spec;
  }
}

}  // namespace
}  // namespace thinwire
