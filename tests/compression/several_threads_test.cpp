// Kernels that are shared out among threads: the bits of one thread, for any number of them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>

#include "collectives/base/team.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/combinations.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

using testing::combinations;
using testing::make_bucket;
using testing::NamedOptions;
using testing::random_gradient;
using testing::Snapshot;

// So many blocks, rows and tiles that each thread gets several.
Bucket large_bucket(at::ScalarType dtype) {
  return make_bucket({{1100, 47}, {70}, {16, 4}, {37, 900}}, dtype);
}

// One rank with its reducer, on as many threads.
struct Side {
  Side(const CompressionOptions& options, at::ScalarType dtype, int threads)
      : bucket(large_bucket(dtype)),
        reducer(
            make_reducer(options, {.queue = make_host_queue(std::make_shared<Team>(threads))})) {}
  Bucket bucket;
  std::unique_ptr<GradientReducer> reducer;
};

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

void compare(const NamedOptions& named, at::ScalarType dtype) {
  SCOPED_TRACE(named.name);
  constexpr int kSize = 2;
  run_ranks(kSize, [&](auto communicator) {
    const int rank = communicator->rank();
    Side sides[] = {
        {named.options, dtype, 1}, {named.options, dtype, 2}, {named.options, dtype, 5}};
    for (Side& side : sides) side.reducer->prepare(side.bucket, rank, kSize);
    for (int step = 0; step < 6; ++step) {
      const StepContext context{
          .step = step,
          .seed = 1,
          .transmission = step == 4 ? Transmission::dense : Transmission::compressed};
      at::Tensor gradient = random_gradient(sides[0].bucket, step, rank);
      if (step == 2) gradient[1000] = std::numeric_limits<double>::infinity();
      if (step == 2) gradient[60000] = std::numeric_limits<double>::quiet_NaN();
      std::optional<std::string> verdicts[std::size(sides)];
      for (std::size_t i = 0; i < std::size(sides); ++i) {
        Side& side = sides[i];
        side.bucket.gradient.copy_(gradient);
        side.reducer->stage(side.bucket, *communicator, context);
        side.reducer->settle(*communicator);
        verdicts[i] = side.reducer->non_finite(side.bucket);
        if (verdicts[i]) {
          side.reducer->rollback(side.bucket);
        } else {
          side.reducer->commit(side.bucket);
        }
        ASSERT_EQ(verdicts[i], verdicts[0]) << step;
        ASSERT_EQ(verdicts[i].has_value(), step == 2);
        if (!verdicts[i]) {
          ASSERT_TRUE(same_bytes(side.bucket.gradient, sides[0].bucket.gradient)) << step;
        }
      }
    }
    Snapshot of_one;
    sides[0].reducer->visit(sides[0].bucket, of_one);
    for (Side& side : sides) {
      Snapshot state;
      side.reducer->visit(side.bucket, state);
      EXPECT_TRUE(state == of_one);
    }
  });
}

TEST(SeveralThreads, HaveTheBitsOfOneInEveryCombination) {
  for (std::size_t which = 0; which < 4; ++which) {
    for (const NamedOptions& named : combinations(which)) compare(named, at::kFloat);
  }
  for (const NamedOptions& named : combinations(0)) compare(named, at::kDouble);
}

TEST(SeveralThreads, HaveTheBitsOfOneWithPowerSgd) {
  for (const char* words :
       {"powersgd:rank=1", "powersgd:rank=4", "powersgd:rank=5,warm_start=false"}) {
    for (const char* feedback : {"error_feedback", "none"}) {
      const NamedOptions named{fmt::format("{} {}", words, feedback),
                               parse_compression(words, feedback)};
      compare(named, at::kFloat);
      compare(named, at::kDouble);
    }
  }
}

}  // namespace
}  // namespace thinwire
