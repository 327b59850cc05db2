#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <filesystem>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/safetensors.h"
#include "tests/runtime/checkpoint/fake_file_system.h"
#include "tests/runtime/checkpoint/run_state.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FaultyFileSystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::MemoryFileSystem;
using testing::RunState;
using testing::save_run;

const std::string root = "run/checkpoints";

std::string file_of(std::int64_t step, const std::string& name) {
  return checkpoint_folder(root, step) + "/" + name;
}

std::int64_t latest_step(FileSystem& files) {
  const auto latest = find_latest_checkpoint(files, root);
  return latest.found ? latest.found->manifest.step : -1;
}

TEST(Save, WritesEachFileWithSyncThenRenameThenSyncOfTheFolderAndTheManifestLast) {
  MemoryFileSystem memory;
  FaultyFileSystem files(memory);
  ASSERT_TRUE(save_run(files, root, 1, 42)[0].complete);

  std::vector<std::string> expected;
  const std::string folder = "run/checkpoints/step-00000042";
  for (const std::string name :
       {"model.safetensors", "optimizer.safetensors", "rank-00000.safetensors", "manifest.json"}) {
    const std::string path = folder + "/" + name;
    for (const std::string call : {"create", "write", "sync", "close"}) {
      expected.push_back(call + " " + path + ".partial");
    }
    expected.push_back("rename " + path + ".partial " + path);
    expected.push_back("sync_directory " + folder);
  }
  expected.push_back("sync_directory run/checkpoints");
  std::vector<std::string> changes;
  for (const auto& call : files.calls()) {
    const std::string word = call.substr(0, call.find(' '));
    if (word == "make_directories" || word == "exists" || word == "list_directory") continue;
    changes.push_back(call);
  }
  EXPECT_EQ(changes, expected);
}

TEST(Save, FilesAreThoseOfTheLayout) {
  MemoryFileSystem files;
  for (const auto& result : save_run(files, root, 2, 3)) {
    EXPECT_TRUE(result.complete);
    EXPECT_EQ(result.folder, "run/checkpoints/step-00000003");
    EXPECT_EQ(result.warning, "");
  }
  EXPECT_THAT(files.list_directory(checkpoint_folder(root, 3)),
              ElementsAre("manifest.json", "model.safetensors", "optimizer.safetensors",
                          "rank-00000.safetensors", "rank-00001.safetensors"));
  const auto names = [&](const std::string& file) {
    std::vector<std::string> list;
    const auto read = read_safetensors(files.read_file(file_of(3, file), 1 << 30), file);
    for (const auto& [name, tensor] : read.tensors) list.push_back(name);
    return list;
  };
  EXPECT_THAT(names("model.safetensors"), ElementsAre("conv1.bias", "conv1.weight", "seen"));
  EXPECT_THAT(names("optimizer.safetensors"), ElementsAre("momentum/conv1.weight"));
  EXPECT_THAT(names("rank-00001.safetensors"),
              ElementsAre("owned/bucket0[50:101]", "residual/conv1.weight", "votes"));
  const Manifest manifest = verify_checkpoint(files, checkpoint_folder(root, 3));
  EXPECT_EQ(manifest.step, 3);
  EXPECT_EQ(manifest.world_size, 2);
  EXPECT_EQ(manifest.counters.at("attempted_steps"), 3);
  EXPECT_EQ(manifest.info.at("optimizer"), "sgd");
}

TEST(Save, ModelFileHoldsTheWholeModelWhateverTheKind) {
  MemoryFileSystem files;
  run_ranks(2, [&](std::unique_ptr<Communicator> communicator) {
    const int rank = communicator->rank();
    RunState run = testing::make_run(rank, 2, 1);
    run.model.entries.push_back(
        {"bn.mean", StateKind::averaged, torch::full({2}, 4.0 * rank, torch::kFloat)});
    ASSERT_TRUE(testing::save(files, *communicator, root, run).complete);
  });
  const auto model =
      read_safetensors(files.read_file(file_of(1, "model.safetensors"), 1 << 30), "model");
  EXPECT_TRUE(model.tensors.at("bn.mean").equal(torch::zeros({2})));
  // On one rank: the mean, not what rank 0 had.
  RunState run = testing::make_blank_run(0, 1);
  run.model.entries.push_back({"bn.mean", StateKind::averaged, torch::full({2}, -1.0F)});
  EXPECT_THAT(testing::load(files, checkpoint_folder(root, 1), 0, 1, run), IsEmpty());
  EXPECT_TRUE(run.model.at("bn.mean").equal(torch::full({2}, 2.0F)));
}

TEST(Save, TheTwoNewestStay) {
  MemoryFileSystem files;
  for (const std::int64_t step : {1, 2, 10})
    ASSERT_TRUE(save_run(files, root, 2, step)[0].complete);
  files.make_directories(root + "/step-00000005");  // of a run that was killed
  files.create(root + "/step-00000005/model.safetensors.partial");
  files.make_directories(root + "/step-00000099");
  files.make_directories(root + "/step-7");
  ASSERT_TRUE(save_run(files, root, 2, 11)[0].complete);
  EXPECT_THAT(files.list_directory(root),
              ElementsAre("step-00000010", "step-00000011", "step-00000099", "step-7"));
  EXPECT_EQ(verify_checkpoint(files, checkpoint_folder(root, 10)).step, 10);
}

TEST(Save, OlderOnesLoseTheirManifestFirstAndDurably) {
  MemoryFileSystem memory;
  for (const std::int64_t step : {1, 2}) save_run(memory, root, 1, step);
  FaultyFileSystem files(memory);
  save_run(files, root, 1, 3);
  const auto& calls = files.calls();
  const auto removal = std::find_if(calls.begin(), calls.end(), [](const std::string& call) {
    return call.starts_with("remove ");
  });
  ASSERT_LT(removal + 1, calls.end());
  EXPECT_EQ(*removal, "remove " + file_of(1, "manifest.json"));
  EXPECT_EQ(*(removal + 1), "sync_directory " + checkpoint_folder(root, 1));
  EXPECT_THAT(calls, ::testing::Contains("remove " + checkpoint_folder(root, 1)));
}

TEST(Save, AnOlderRunsLaterCheckpointsDoNotPushOutTheNewOne) {
  MemoryFileSystem files;
  for (const std::int64_t step : {50, 60, 5}) save_run(files, root, 1, step);
  EXPECT_EQ(files.list_directory(root).size(), 3U);
  EXPECT_EQ(verify_checkpoint(files, checkpoint_folder(root, 5)).step, 5);
}

TEST(Save, ACompleteCheckpointOfTheStepIsKeptAndIsASuccess) {
  MemoryFileSystem memory;
  save_run(memory, root, 2, 4);
  FaultyFileSystem files(memory);
  for (const auto& result : save_run(files, root, 2, 4)) {
    EXPECT_TRUE(result.complete);
    EXPECT_EQ(result.warning, "");
  }
  for (const auto& call : files.calls()) EXPECT_FALSE(call.starts_with("create")) << call;
}

TEST(Save, AnUnfinishedOrDamagedOneOfTheStepIsReplaced) {
  for (const std::string name : {"manifest.json", "rank-00001.safetensors"}) {
    MemoryFileSystem files;
    save_run(files, root, 2, 4);
    files.remove(file_of(4, name));
    files.create(file_of(4, "rank-00007.safetensors.partial"));
    EXPECT_TRUE(save_run(files, root, 2, 4)[0].complete);
    EXPECT_EQ(files.list_directory(checkpoint_folder(root, 4)).size(), 5U);
    EXPECT_EQ(latest_step(files), 4);
  }
}

TEST(Save, FailureOnOneRankReachesAllAsTheSameText) {
  MemoryFileSystem memory;
  save_run(memory, root, 3, 1);
  FaultyFileSystem files(memory);
  files.fail_paths_with("step-00000002/rank-00002");
  const auto results = save_run(files, root, 3, 2);
  EXPECT_THAT(results[0].warning,
              AllOf(HasSubstr("step 2 was not saved: rank 2: "), HasSubstr("rank-00002"),
                    HasSubstr("No space left on device; ")));
  for (const auto& result : results) {
    EXPECT_FALSE(result.complete);
    EXPECT_EQ(result.warning, results[0].warning);
  }
  EXPECT_EQ(latest_step(memory), 1);
}

TEST(Save, FailureThatIsNotTheDisksReachesAllToo) {
  MemoryFileSystem files;
  std::vector<SaveResult> results(3);
  run_ranks(3, [&](std::unique_ptr<Communicator> communicator) {
    const int rank = communicator->rank();
    RunState run = testing::make_run(rank, 3, 2);
    if (rank == 1) {
      run.other.entries[1].tensor = torch::zeros({2}, torch::kComplexFloat);
    }
    results[static_cast<std::size_t>(rank)] = testing::save(files, *communicator, root, run);
  });
  for (const auto& result : results) {
    EXPECT_THAT(result.warning, HasSubstr("rank 1: "));
    EXPECT_EQ(result.warning, results[0].warning);
  }
  EXPECT_THAT(files.list_directory(root), IsEmpty());
}

TEST(Save, AFolderThatIsNotSharedIsNoticed) {
  MemoryFileSystem first;
  MemoryFileSystem second;
  second.make_directories(checkpoint_folder(root, 1));
  std::vector<SaveResult> results(2);
  run_ranks(2, [&](std::unique_ptr<Communicator> communicator) {
    const int rank = communicator->rank();
    results[static_cast<std::size_t>(rank)] = testing::save(
        rank == 0 ? first : second, *communicator, root, testing::make_run(rank, 2, 1));
  });
  EXPECT_FALSE(results[1].complete);
  EXPECT_THAT(results[1].warning, AllOf(HasSubstr("rank-00001"), HasSubstr("share")));
  EXPECT_EQ(results[0].warning, results[1].warning);
}

TEST(Save, WorksOnARealDisk) {
  std::string name = std::filesystem::temp_directory_path() / "thinwire-XXXXXX";
  const std::string folder = ::mkdtemp(name.data());
  PosixFileSystem files;
  const std::string below = folder + "/out/checkpoints";
  for (const std::int64_t step : {1, 2, 3}) {
    ASSERT_TRUE(save_run(files, below, 3, step)[0].complete);
  }
  EXPECT_EQ(files.list_directory(below).size(), 2U);
  const auto latest = find_latest_checkpoint(files, below);
  ASSERT_TRUE(latest.found);
  RunState run = testing::make_blank_run(1, 3);
  EXPECT_THAT(testing::load(files, latest.found->folder, 1, 3, run), IsEmpty());
  EXPECT_TRUE(testing::same(run, testing::make_run(1, 3, 3)));
  std::filesystem::remove_all(folder);
}

// Saves with what tells one run from another.
SaveResult save_as(FileSystem& files, std::int64_t step, const std::string& seed) {
  SaveResult result;
  run_ranks(1, [&](std::unique_ptr<Communicator> communicator) {
    testing::RunState run = testing::make_run(0, 1, step);
    StateCollector model;
    StateCollector other;
    run.model.show(model);
    run.other.show(other);
    result = save_checkpoint(
        files, *communicator,
        {.root = root, .step = step, .info = {{"seed", seed}}, .identity = {"seed"}}, model, other);
  });
  return result;
}

std::string other_seed_than(const std::string& seed, const Manifest& manifest) {
  return manifest.info.at("seed") == seed ? "" : "has seed " + manifest.info.at("seed");
}

TEST(Save, ACompleteCheckpointOfAnotherRunIsNeitherKeptAsThisOnesNorRemoved) {
  MemoryFileSystem files;
  ASSERT_TRUE(save_as(files, 4, "1").complete);
  const SaveResult result = save_as(files, 4, "2");
  EXPECT_FALSE(result.complete);
  EXPECT_THAT(result.warning,
              HasSubstr("step 4 was not saved: rank 0: run/checkpoints/step-00000004 "
                        "holds another run's checkpoint, with seed 1, this run has "
                        "2; move it away"));
  EXPECT_EQ(verify_checkpoint(files, checkpoint_folder(root, 4)).info.at("seed"), "1");
  EXPECT_TRUE(save_as(files, 4, "1").complete);
  // Nor do older ones of another run count or go.
  for (const std::int64_t step : {5, 6, 7}) ASSERT_TRUE(save_as(files, step, "2").complete);
  EXPECT_THAT(files.list_directory(root),
              ElementsAre("step-00000004", "step-00000006", "step-00000007"));
}

void copy_checkpoint(MemoryFileSystem& files, std::int64_t from, std::int64_t to) {
  files.make_directories(checkpoint_folder(root, to));
  for (const auto& name : files.list_directory(checkpoint_folder(root, from))) {
    files.create(file_of(to, name))->write(files.read_file(file_of(from, name), 1 << 20));
  }
}

TEST(Save, ACopyUnderTheNameOfTheStepIsNotKeptAsIt) {
  MemoryFileSystem files;
  save_run(files, root, 1, 4);
  copy_checkpoint(files, 4, 9);
  EXPECT_THAT(save_run(files, root, 1, 9)[0].warning,
              HasSubstr("another run's checkpoint, of step 4"));
  EXPECT_EQ(latest_step(files), 4);
}

TEST(Save, OnlyADiskThatIsFullLacksSpace) {
  MemoryFileSystem memory;
  FaultyFileSystem files(memory);
  files.fail_paths_with("rank-00001");
  for (const auto& result : save_run(files, root, 2, 2)) EXPECT_TRUE(result.lacks_space);
  EXPECT_FALSE(save_run(memory, root, 2, 3)[0].lacks_space);
}

SaveRequest up_to(std::int64_t step) {
  return {.root = root, .step = step, .info = {}};
}

TEST(MakeRoom, TakesTheOldestOfSeveralAndWhatIsUnfinished) {
  MemoryFileSystem files;
  for (const std::int64_t step : {1, 2}) save_run(files, root, 1, step);
  files.make_directories(checkpoint_folder(root, 3));
  files.make_directories(checkpoint_folder(root, 9));
  EXPECT_EQ(make_room(files, up_to(5)),
            checkpoint_folder(root, 3) + ", " + checkpoint_folder(root, 1));
  EXPECT_THAT(files.list_directory(root), ElementsAre("step-00000002", "step-00000009"));
  EXPECT_EQ(make_room(files, up_to(5)), "");
  EXPECT_EQ(latest_step(files), 2);
  EXPECT_EQ(make_room(files, {.root = "nowhere", .step = 5, .info = {}}), "");
}

// A copy under another step's name is not one of this run's, so that one whole one stays.
TEST(MakeRoom, LeavesWhatIsNotOfThisRun) {
  MemoryFileSystem files;
  save_run(files, root, 1, 4);
  copy_checkpoint(files, 4, 9);
  EXPECT_EQ(make_room(files, up_to(12)), "");
  EXPECT_EQ(latest_step(files), 4);
}

TEST(Save, WhatIsDamagedIsNoneOfThoseThatAreKept) {
  MemoryFileSystem files;
  for (const std::int64_t step : {1, 2}) save_run(files, root, 1, step);
  files.bytes(file_of(2, "manifest.json")).back() ^= 1;
  save_run(files, root, 1, 3);
  EXPECT_THAT(files.list_directory(root),
              ElementsAre("step-00000001", "step-00000002", "step-00000003"));
  save_run(files, root, 1, 4);
  EXPECT_THAT(files.list_directory(root), ElementsAre("step-00000003", "step-00000004"));
}

// What cannot be read may be whole: nobody goes on from an older one beside it.
TEST(Latest, WhatCannotBeReadEndsTheSearch) {
  MemoryFileSystem memory;
  for (const std::int64_t step : {1, 2}) save_run(memory, root, 1, step);
  FaultyFileSystem files(memory);
  files.fail_paths_with("step-00000002/model");
  EXPECT_THROW(find_latest_checkpoint(files, root), IoError);
}

TEST(Latest, SaysWhetherSomeWereCompleteOnce) {
  MemoryFileSystem files;
  files.make_directories(checkpoint_folder(root, 3));
  EXPECT_FALSE(find_latest_checkpoint(files, root).any_damaged);
  save_run(files, root, 1, 2);
  files.bytes(file_of(2, "model.safetensors")).back() ^= 1;
  const LatestCheckpoint latest = find_latest_checkpoint(files, root);
  EXPECT_TRUE(latest.any_damaged && !latest.found);
}

TEST(MakeRoom, LeavesTheLastWholeOneWhereTheNewestIsDamaged) {
  MemoryFileSystem files;
  for (const std::int64_t step : {1, 2}) save_run(files, root, 1, step);
  files.bytes(file_of(2, "model.safetensors")).back() ^= 1;
  EXPECT_EQ(make_room(files, up_to(5)), "");
  EXPECT_EQ(latest_step(files), 1);
}

TEST(FindLatest, StrangersArePassedOverByTheirManifestsAlone) {
  MemoryFileSystem memory;
  for (const std::int64_t step : {1, 2}) ASSERT_TRUE(save_as(memory, step, "1").complete);
  for (const std::int64_t step : {8, 9}) ASSERT_TRUE(save_as(memory, step, "2").complete);
  memory.rename(checkpoint_folder(root, 1), checkpoint_folder(root, 7));
  for (const auto& path : memory.all_files()) {
    const std::string moved = checkpoint_folder(root, 1) + "/";
    if (path.starts_with(moved)) memory.rename(path, file_of(7, path.substr(moved.size())));
  }
  FaultyFileSystem files(memory);
  const auto objection = [](const Manifest& manifest) { return other_seed_than("1", manifest); };
  const auto latest = find_latest_checkpoint(files, root, objection);
  ASSERT_TRUE(latest.found);
  EXPECT_EQ(latest.found->folder, checkpoint_folder(root, 2));
  EXPECT_THAT(latest.rejected,
              ElementsAre(HasSubstr("step-00000009: has seed 2; passed over"),
                          HasSubstr("step-00000008: has seed 2; passed over"),
                          HasSubstr("step-00000007: is a link or a copy under another name, of "
                                    "step 1; passed over")));
  for (const auto& call : files.calls()) {
    const bool is_strange = call.find("step-00000002") == std::string::npos;
    const bool is_read = call.starts_with("read_file");
    EXPECT_TRUE(!is_strange || !is_read || call.ends_with("manifest.json")) << call;
  }
  const auto strangers = find_strangers(files, root, objection);
  ASSERT_EQ(strangers.size(), 3U);
  EXPECT_EQ(strangers[0].folder, checkpoint_folder(root, 9));
  EXPECT_EQ(strangers[0].why, "has seed 2");
}

TEST(Save, ALinkInThePlaceOfACheckpointIsRemovedAloneWithoutWhatItLeadsTo) {
  std::string name = std::filesystem::temp_directory_path() / "thinwire-XXXXXX";
  const std::string folder = ::mkdtemp(name.data());
  PosixFileSystem files;
  const std::string below = folder + "/checkpoints";
  ASSERT_TRUE(save_run(files, folder + "/other", 1, 1)[0].complete);
  const std::string precious = checkpoint_folder(folder + "/other", 1);
  std::filesystem::create_directories(below);
  std::filesystem::create_directory_symlink(precious, checkpoint_folder(below, 1));
  std::filesystem::create_directory_symlink(folder + "/nowhere", checkpoint_folder(below, 3));
  for (const std::int64_t step : {2, 3}) ASSERT_TRUE(save_run(files, below, 1, step)[0].complete);
  EXPECT_THAT(files.list_directory(below), ElementsAre("step-00000002", "step-00000003"));
  EXPECT_FALSE(files.is_link(checkpoint_folder(below, 3)));
  EXPECT_EQ(verify_checkpoint(files, precious).step, 1);
  // A file there is not the run's to remove.
  files.create(checkpoint_folder(below, 4));
  const SaveResult result = save_run(files, below, 1, 4)[0];
  EXPECT_FALSE(result.complete);
  EXPECT_FALSE(result.lacks_space);
  EXPECT_THAT(result.warning, HasSubstr("Not a directory"));
  EXPECT_TRUE(std::filesystem::is_regular_file(checkpoint_folder(below, 4)));
  std::filesystem::remove_all(folder);
}

TEST(FindLatest, NothingThereIsNoError) {
  MemoryFileSystem files;
  EXPECT_FALSE(find_latest_checkpoint(files, "nowhere").found);
  files.make_directories(root);
  EXPECT_FALSE(find_latest_checkpoint(files, root).found);
}

TEST(FindLatest, SaysWhyNewerOnesWereRejected) {
  MemoryFileSystem files;
  for (const std::int64_t step : {1, 2}) save_run(files, root, 1, step);
  files.bytes(file_of(2, "optimizer.safetensors")).back() ^= 1;
  files.make_directories(checkpoint_folder(root, 3));
  const auto latest = find_latest_checkpoint(files, root);
  ASSERT_TRUE(latest.found);
  EXPECT_EQ(latest.found->folder, checkpoint_folder(root, 1));
  EXPECT_THAT(latest.rejected,
              ElementsAre(AllOf(HasSubstr("step-00000003"), HasSubstr("not finished")),
                          AllOf(HasSubstr("step-00000002/optimizer.safetensors"),
                                HasSubstr("momentum/conv1.weight"))));
}

}  // namespace
}  // namespace thinwire
