// A full disk at, or a crash after, every single call of a save.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/runtime/checkpoint/fake_file_system.h"
#include "tests/runtime/checkpoint/run_state.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using testing::Crash;
using testing::FaultyFileSystem;
using ::testing::HasSubstr;
using testing::MemoryFileSystem;
using testing::RunState;
using testing::save_run;

const std::string root = "run/checkpoints";

// The state that the newest valid checkpoint gives rank 0 is exactly that of its step, which is
// returned.
std::int64_t resumed_step(FileSystem& files, int world_size) {
  const auto latest = find_latest_checkpoint(files, root);
  if (!latest.found) return -1;
  const std::int64_t step = latest.found->manifest.step;
  RunState run = testing::make_blank_run(0, world_size);
  testing::load(files, latest.found->folder, 0, world_size, run);
  EXPECT_TRUE(testing::same(run, testing::make_run(0, world_size, step)));
  return step;
}

// How many calls a save of step 3 after steps 1 and 2 makes.
int calls_of_a_save(int world_size) {
  MemoryFileSystem memory;
  for (const std::int64_t step : {1, 2}) save_run(memory, root, world_size, step);
  FaultyFileSystem files(memory);
  EXPECT_TRUE(save_run(files, root, world_size, 3)[0].complete);
  return static_cast<int>(files.calls().size());
}

class FailedCall : public ::testing::TestWithParam<int> {};

TEST_P(FailedCall, LeavesAValidCheckpointAndEveryRankKnows) {
  const int world_size = GetParam();
  const int calls = calls_of_a_save(world_size);
  ASSERT_GT(calls, 30);
  int failures = 0;
  for (int call = 0; call < calls; ++call) {
    SCOPED_TRACE(call);
    MemoryFileSystem memory;
    for (const std::int64_t step : {1, 2}) save_run(memory, root, world_size, step);
    FaultyFileSystem files(memory);
    files.fail_only(call);
    const auto results = save_run(files, root, world_size, 3);
    for (const auto& result : results) {
      EXPECT_EQ(result.complete, results[0].complete);
      EXPECT_EQ(result.warning, results[0].warning);
      EXPECT_THAT(result.warning, HasSubstr("No space left on device; "));
    }
    EXPECT_EQ(resumed_step(memory, world_size), results[0].complete ? 3 : 2);
    // What was left behind does not disturb the next save.
    EXPECT_EQ(save_run(memory, root, world_size, 4)[0].warning, "");
    EXPECT_EQ(resumed_step(memory, world_size), 4);
    EXPECT_EQ(memory.list_directory(root).size(), 2U);
    if (!results[0].complete) ++failures;
  }
  EXPECT_GT(failures, 24) << "most calls come before the checkpoint is complete";
}

TEST_P(FailedCall, DoesNotHarmACompleteCheckpointOfTheSameStep) {
  const int world_size = GetParam();
  for (int call = 0; call < 12; ++call) {
    SCOPED_TRACE(call);
    MemoryFileSystem memory;
    save_run(memory, root, world_size, 2);
    FaultyFileSystem files(memory);
    files.fail_only(call);
    save_run(files, root, world_size, 2);
    EXPECT_EQ(resumed_step(memory, world_size), 2);
    // What could not be read may be whole: it is not even replaced.
    for (const auto& made : files.calls()) EXPECT_FALSE(made.starts_with("remove ")) << made;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, FailedCall, ::testing::Values(1, 3));

class CrashAfterCall : public ::testing::TestWithParam<Crash> {};

// From the crash on nothing reaches the disk any more; what was not synced may be lost.
TEST_P(CrashAfterCall, ACompleteCheckpointIsFound) {
  const int calls = calls_of_a_save(1);
  int completed = 0;
  for (int call = 0; call <= calls; ++call) {
    SCOPED_TRACE(call);
    MemoryFileSystem memory;
    for (const std::int64_t step : {1, 2}) save_run(memory, root, 1, step);
    FaultyFileSystem files(memory);
    files.fail_from(call);
    const bool complete = save_run(files, root, 1, 3)[0].complete;
    memory.crash(GetParam());
    const std::int64_t step = resumed_step(memory, 1);
    if (complete) {
      ++completed;
      EXPECT_EQ(step, 3);
    } else {
      EXPECT_THAT(step, ::testing::AnyOf(2, 3));
    }
    EXPECT_TRUE(save_run(memory, root, 1, 3)[0].complete);
    EXPECT_EQ(resumed_step(memory, 1), 3);
  }
  EXPECT_GT(completed, 0);
}

INSTANTIATE_TEST_SUITE_P(Kinds, CrashAfterCall,
                         ::testing::Values(Crash::everything, Crash::only_synced,
                                           Crash::only_names));

}  // namespace
}  // namespace thinwire
