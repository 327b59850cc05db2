#include "runtime/checkpoint/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "collectives/base/error.h"
#include "tests/runtime/checkpoint/fake_file_system.h"
#include "tests/runtime/checkpoint/run_state.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FaultyFileSystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::load;
using testing::make_blank_run;
using testing::make_run;
using testing::MemoryFileSystem;
using testing::ranged_size;
using testing::RunState;

const std::string root = "run/checkpoints";
const std::string folder = "run/checkpoints/step-00000006";

StateEntry owned(std::int64_t begin, std::int64_t end) {
  return {"owned/bucket0", StateKind::ranged, torch::full({end - begin}, -1.0F), begin, end};
}

std::string refusal(FileSystem& files, RunState& run) {
  try {
    load(files, folder, 0, 1, run);
  } catch (const DataError& error) {
    return error.what();
  }
  return "it was accepted";
}

struct Worlds {
  int saved;
  int loaded;
};

class LoadAcross : public ::testing::TestWithParam<Worlds> {};

TEST_P(LoadAcross, ReplicatedIsExactAveragedKeepsItsMeanRangedIsRecut) {
  const auto [saved, loaded] = GetParam();
  MemoryFileSystem files;
  testing::save_run(files, root, saved, 6);
  for (int rank = 0; rank < loaded; ++rank) {
    RunState run = make_blank_run(rank, loaded);
    EXPECT_THAT(load(files, folder, rank, loaded, run), IsEmpty());
    // The oracle: what this rank would hold at that step, with the mean of base + 8 rank.
    RunState expected = make_run(rank, loaded, 6);
    if (saved != loaded) {
      expected.other.at("residual/conv1.weight")
          .copy_((torch::arange(12, torch::kFloat) + 6 + 4 * (saved - 1)).view({4, 3}));
      expected.other.at("votes").fill_(100);
    }
    EXPECT_TRUE(testing::same(run, expected)) << "rank " << rank;
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, LoadAcross,
                         ::testing::Values(Worlds{1, 1}, Worlds{3, 3}, Worlds{1, 3}, Worlds{4, 2},
                                           Worlds{2, 4}, Worlds{3, 1}, Worlds{3, 5}),
                         [](const auto& test) {
                           return std::to_string(test.param.saved) + "to" +
                                  std::to_string(test.param.loaded);
                         });

TEST(Load, AtTheSameWorldSizeReadsOnlyTheOwnRanksFile) {
  MemoryFileSystem memory;
  testing::save_run(memory, root, 4, 6);
  FaultyFileSystem files(memory);
  RunState run = make_blank_run(2, 4);
  load(files, folder, 2, 4, run);
  std::vector<std::string> reads;
  for (const auto& call : files.calls()) {
    if (call.starts_with("read_file ")) reads.push_back(call.substr(call.rfind('/') + 1));
  }
  EXPECT_THAT(reads, ElementsAre("manifest.json", "model.safetensors", "optimizer.safetensors",
                                 "rank-00002.safetensors"));
}

TEST(Load, OtherRangesAtTheSameWorldSizeAreRecutTheRestStaysTheRanksOwn) {
  MemoryFileSystem files;
  testing::save_run(files, root, 3, 6);
  RunState run = make_blank_run(1, 3);
  run.other.entries.pop_back();
  // Two pieces, the second one beyond what was saved.
  run.other.entries.push_back(owned(20, 90));
  run.other.entries.push_back(owned(95, ranged_size + 4));
  EXPECT_THAT(load(files, folder, 1, 3, run), IsEmpty());
  EXPECT_TRUE(run.other.at("residual/conv1.weight")
                  .equal(make_run(1, 3, 6).other.at("residual/conv1.weight")));
  const auto& pieces = run.other.entries;
  EXPECT_TRUE(pieces[pieces.size() - 2].tensor.equal(torch::arange(26, 96, torch::kFloat)));
  EXPECT_TRUE(pieces.back().tensor.equal(
      torch::cat({torch::arange(101, 107, torch::kFloat), torch::zeros({4})})));
}

TEST(Load, ThingsThatTheCheckpointLacksStartAtZeroWithAWarning) {
  MemoryFileSystem files;
  testing::save_run(files, root, 1, 6);
  RunState run = make_blank_run(0, 1);
  run.other.entries.push_back({"residual/new", StateKind::averaged, torch::ones({2})});
  run.other.entries.push_back({"owned/new", StateKind::ranged, torch::ones({2}), 4, 6});
  EXPECT_THAT(load(files, folder, 0, 1, run),
              ElementsAre(HasSubstr(
                  "2 tensors are not in the checkpoint and start at zero: 'residual/new'")));
  EXPECT_TRUE(run.other.at("residual/new").equal(torch::zeros({2})));
  EXPECT_TRUE(run.other.at("owned/new").equal(torch::zeros({2})));
  EXPECT_TRUE(run.other.at("votes").equal(torch::tensor({100}, torch::kLong)));
}

TEST(Load, SavedStateThatNobodyWantsIsAWarning) {
  MemoryFileSystem files;
  testing::save_run(files, root, 2, 6);
  for (const int world_size : {1, 2}) {
    RunState run = make_blank_run(0, world_size);
    run.other.entries.erase(run.other.entries.begin(), run.other.entries.begin() + 2);
    EXPECT_THAT(
        load(files, folder, 0, world_size, run),
        ElementsAre(AllOf(HasSubstr("optimizer.safetensors"), HasSubstr("'momentum/conv1.weight'")),
                    HasSubstr("'residual/conv1.weight'")));
  }
}

TEST(Load, ReplicatedStateOrACounterThatIsMissingIsAnError) {
  MemoryFileSystem files;
  testing::save_run(files, root, 1, 6);
  RunState run = make_blank_run(0, 1);
  run.model.entries.push_back({"fc.weight", StateKind::replicated, torch::ones({2})});
  EXPECT_THAT(refusal(files, run), AllOf(HasSubstr("model.safetensors"), HasSubstr("'fc.weight'")));
  run = make_blank_run(0, 1);
  run.other.counters["epoch"] = 3;
  EXPECT_THAT(refusal(files, run), AllOf(HasSubstr("manifest.json"), HasSubstr("'epoch'")));
  // Replicated now, averaged then.
  run = make_blank_run(0, 1);
  run.other.entries[1].kind = StateKind::replicated;
  EXPECT_THAT(refusal(files, run), HasSubstr("'residual/conv1.weight'"));
}

TEST(Load, AnotherShapeOrDtypeIsAnErrorThatNamesBoth) {
  for (const int saved_world_size : {1, 2}) {
    MemoryFileSystem files;
    testing::save_run(files, root, saved_world_size, 6);
    for (const std::size_t index : {0U, 1U}) {
      RunState run = make_blank_run(0, 1);
      const std::string name = run.other.entries[index].name;
      run.other.entries[index].tensor = torch::ones({4, 4});
      EXPECT_THAT(refusal(files, run), AllOf(HasSubstr("'" + name + "'"), HasSubstr("Float [4, 3]"),
                                             HasSubstr("Float [4, 4]")));
      run.other.entries[index].tensor = torch::ones({4, 3}, torch::kDouble);
      EXPECT_THAT(refusal(files, run),
                  AllOf(HasSubstr("'" + name + "'"), HasSubstr("Double [4, 3]")));
    }
    RunState run = make_blank_run(0, 1);
    run.other.entries.back().tensor = torch::ones({ranged_size}, torch::kHalf);
    EXPECT_THAT(refusal(files, run), HasSubstr("'owned/bucket0'"));
  }
}

TEST(Load, FilesAreCheckedAsTheyAreRead) {
  MemoryFileSystem files;
  testing::save_run(files, root, 2, 6);
  files.bytes(folder + "/rank-00001.safetensors").back() ^= 1;
  RunState run = make_blank_run(0, 1);
  EXPECT_THAT(refusal(files, run), HasSubstr("rank-00001.safetensors"));
}

TEST(StateCollector, RefusesStateThatCouldNotBeToldApart) {
  StateCollector collector;
  collector.tensor({"a", StateKind::replicated, torch::ones({2})});
  EXPECT_THROW(collector.tensor({"a", StateKind::averaged, torch::ones({2})}), Bug);
  EXPECT_THROW(collector.tensor({"b", StateKind::replicated, {}}), Bug);
  EXPECT_THROW(collector.tensor({"c", StateKind::ranged, torch::ones({2}), 0, 3}), Bug);
  std::int64_t value = 0;
  collector.counter("n", value);
  EXPECT_THROW(collector.counter("n", value), Bug);
}

}  // namespace
}  // namespace thinwire
