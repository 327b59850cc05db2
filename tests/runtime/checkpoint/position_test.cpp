#include "runtime/trainer/position.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::int64_t kSamples = 100;

// What is wrong with a checkpoint of step 7 whose counter `name` is `value`.
std::string refusal(const std::string& name, std::int64_t value) {
  FoundCheckpoint found{"run/step-00000007", {}};
  found.manifest.step = 7;
  found.manifest.counters = {{"attempted_steps", 7}, {"committed_steps", 5},
                             {"skipped_steps", 2},   {"skipped_in_a_row", 1},
                             {"epoch", 3},           {"consumed_samples", 99}};
  found.manifest.counters.at(name) = value;
  try {
    require_possible_position(found, kSamples);
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("run/step-00000007: "), HasSubstr("; ")));
    return error.what();
  }
  return "it was accepted";
}

TEST(Position, ThatCanBeIsAccepted) {
  EXPECT_EQ(refusal("consumed_samples", 0), "it was accepted");
  EXPECT_EQ(refusal("consumed_samples", kSamples - 1), "it was accepted");
  EXPECT_EQ(refusal("skipped_in_a_row", 2), "it was accepted");
  EXPECT_EQ(refusal("epoch", 0), "it was accepted");
}

TEST(Position, ThatCannotBeIsRefused) {
  EXPECT_THAT(refusal("consumed_samples", kSamples), HasSubstr("100 samples of an epoch of 100"));
  EXPECT_THAT(refusal("epoch", std::int64_t{1} << 48), HasSubstr("'epoch' is 281474976710656"));
  EXPECT_THAT(refusal("attempted_steps", 8), HasSubstr("of step 7, but 8 steps were attempted"));
  EXPECT_THAT(refusal("committed_steps", 8), HasSubstr("8 were committed and 2 skipped"));
  EXPECT_THAT(refusal("committed_steps", 4), HasSubstr("4 were committed and 2 skipped"));
  EXPECT_THAT(refusal("skipped_in_a_row", 3), HasSubstr("2 skipped, 3 in a row"));
}

}  // namespace
}  // namespace thinwire
