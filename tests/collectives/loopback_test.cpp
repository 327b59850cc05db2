// A group of which only one rank exists.
#include "collectives/loopback/loopback_communicator.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "collectives/base/error.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/metered.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

using testing::make_bucket;
using testing::mixed_shapes;
using testing::random_gradient;

TEST(Loopback, ResultsAreMadeOfWhatThisRankGave) {
  const auto alone = make_loopback_communicator(1, 3);
  at::Tensor values = at::arange(6, at::kFloat);
  alone->all_reduce(values, ReduceOp::sum)->wait();
  EXPECT_TRUE(values.equal(at::arange(6, at::kFloat)));
  alone->broadcast(values, 0)->wait();
  EXPECT_TRUE(values.equal(at::arange(6, at::kFloat)));
  at::Tensor part = at::zeros({2}, at::kFloat);
  alone->reduce_scatter(part, values, ReduceOp::sum, {1, 2, 3})->wait();
  EXPECT_TRUE(part.equal(at::tensor({1.0f, 2.0f})));
  at::Tensor arrived = at::zeros({6}, at::kFloat);
  alone->all_to_all(arrived, values, {2, 2, 2}, {1, 2, 3})->wait();
  EXPECT_TRUE(arrived.equal(at::tensor({1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 2.0f})));
  // Of the size of those messages: they are the answer, but for this rank's own.
  at::Tensor gathered = at::zeros({6}, at::kFloat);
  const at::Tensor reply = at::tensor({7.0f, 8.0f});
  alone->all_gather(gathered, reply, {1, 2, 3})->wait();
  EXPECT_TRUE(gathered.equal(at::tensor({0.0f, 7.0f, 8.0f, 3.0f, 4.0f, 5.0f})));
  // They answer once. Nothing else was sent: everybody gives the same.
  alone->all_gather(gathered, reply, {2, 2, 2})->wait();
  EXPECT_TRUE(gathered.equal(at::tensor({7.0f, 8.0f, 7.0f, 8.0f, 7.0f, 8.0f})));
  at::Tensor mine = gathered.narrow(0, 2, 2);
  mine.fill_(9);
  alone->all_gather(gathered, mine, {2, 2, 2})->wait();
  EXPECT_TRUE(gathered.equal(at::full({6}, 9.0f)));
  alone->barrier()->wait();
  EXPECT_EQ(alone->split(0, 0)->size(), 3);
}

TEST(Loopback, AnAbortedOneThrows) {
  const auto alone = make_loopback_communicator(0, 2);
  alone->abort("enough");
  EXPECT_THROW(alone->barrier(), PeerLost);
}

// A reducer cannot tell: it does as much, claims the bytes that a real backend sends, and decodes
// finite values.
TEST(Loopback, AReducerSendsAsMuchAsOverARealBackend) {
  for (const CompressionOptions& options : {CompressionOptions{}, CompressionOptions{Sign{64}}}) {
    const auto bytes_over = [&](std::unique_ptr<Communicator> transport) {
      const auto meter = std::make_shared<Meter>();
      const auto communicator = make_metered(std::move(transport), meter);
      Bucket bucket = make_bucket(mixed_shapes());
      const auto reducer = make_reducer(options);
      reducer->prepare(bucket, communicator->rank(), communicator->size());
      for (int step = 0; step < 3; ++step) {
        bucket.gradient.copy_(random_gradient(bucket, step, communicator->rank()));
        reducer->stage(bucket, *communicator, {.step = step});
        reducer->settle(*communicator);
        EXPECT_EQ(reducer->non_finite(bucket), std::nullopt);
        reducer->commit(bucket);
        EXPECT_TRUE(bucket.gradient.isfinite().all().item<bool>());
        EXPECT_GT(bucket.gradient.abs().max().item<double>(), 0);
      }
      return meter->total().bytes_sent;
    };
    run_ranks(3, [&](auto communicator) {
      const int rank = communicator->rank();
      const std::int64_t real = bytes_over(std::move(communicator));
      EXPECT_EQ(bytes_over(make_loopback_communicator(rank, 3)), real);
    });
  }
}

}  // namespace
}  // namespace thinwire
