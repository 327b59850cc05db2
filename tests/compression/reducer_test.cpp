#include <gtest/gtest.h>

#include <limits>
#include <mutex>

#include "collectives/base/error.h"
#include "collectives/checked.h"
#include "collectives/compression/codec/codec.h"
#include "collectives/compression/options.h"
#include "collectives/compression/parse.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/metered.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/support.h"
#include "tests/reference/chunks.h"
#include "tests/reference/codec.h"
#include "tests/reference/reducer.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using reference::PlainCodec;

using testing::make_bucket;
using testing::mixed_shapes;
using testing::random_gradient;
using testing::Snapshot;

const CompressionOptions kDense{};
const CompressionOptions kIdentityTwoStage{
    Uncompressed{}, {FeedbackKind::none}, ExchangeKind::two_stage};
const CompressionOptions kSignPlain{Sign{64}, {FeedbackKind::none}, ExchangeKind::two_stage};
const CompressionOptions kSignFeedback{
    Sign{64}, {FeedbackKind::error_feedback}, ExchangeKind::two_stage};

// The state of all ranks, added up into flat float64 vectors of the bucket's size.
struct TotalResidual final : StateVisitor {
  explicit TotalResidual(const Bucket& b)
      : bucket(b),
        worker(at::zeros({b.numel()}, at::kDouble)),
        owner(at::zeros({b.numel()}, at::kDouble)) {}
  void tensor(const StateEntry& entry) override {
    const std::string slice_name = entry.name.substr(entry.name.find('/') + 1);
    for (const auto& slice : bucket.slices) {
      if (slice.name != slice_name) continue;
      if (entry.kind == StateKind::averaged) {
        worker.narrow(0, slice.offset, slice.numel).add_(entry.tensor.flatten().to(at::kDouble));
      } else {
        owner.narrow(0, slice.offset + entry.begin, entry.end - entry.begin)
            .add_(entry.tensor.to(at::kDouble));
      }
    }
  }
  void counter(const std::string&, std::int64_t&) override {}
  const Bucket& bucket;
  at::Tensor worker;
  at::Tensor owner;
};

class Conservation : public ::testing::TestWithParam<int> {};

// sum of estimates + mean of worker residuals + owner residuals = sum of mean gradients.
TEST_P(Conservation, ErrorFeedbackLosesNothingIn500Steps) {
  const int size = GetParam();
  std::mutex mutex;
  at::Tensor residual;
  at::Tensor estimates;
  at::Tensor gradients;
  run_ranks(size, [&](auto communicator) {
    const int rank = communicator->rank();
    Bucket bucket = make_bucket(mixed_shapes(), at::kDouble);
    const auto reducer = make_reducer(kSignFeedback);
    reducer->prepare(bucket, rank, size);
    at::Tensor sent = at::zeros({bucket.numel()}, at::kDouble);
    at::Tensor own = at::zeros({bucket.numel()}, at::kDouble);
    for (int step = 0; step < 500; ++step) {
      at::Tensor gradient = random_gradient(bucket, step, rank);
      // A matrix of zeros for a while, and one of denormals: blocks that say zero.
      if (step < 100) gradient.narrow(0, bucket.slices[5].offset, bucket.slices[5].numel).zero_();
      if (step < 50) gradient.narrow(0, bucket.slices[6].offset, 100).fill_(5e-324);
      bucket.gradient.copy_(gradient);
      own.add_(gradient);
      reducer->stage(bucket, *communicator, {.step = step, .seed = 1});
      reducer->settle(*communicator);
      ASSERT_FALSE(reducer->non_finite(bucket));
      reducer->commit(bucket);
      sent.add_(bucket.gradient);
    }
    TotalResidual total(bucket);
    reducer->visit(bucket, total);
    const std::lock_guard lock(mutex);
    const at::Tensor part = total.worker / size + total.owner;
    residual = residual.defined() ? residual + part : part;
    gradients = gradients.defined() ? gradients + own / size : own / size;
    if (estimates.defined()) {
      EXPECT_TRUE(estimates.equal(sent)) << "ranks decoded different estimates";
    }
    estimates = sent;
  });
  EXPECT_LT((estimates + residual - gradients).abs().max().item<double>(), 1e-9);
  // Not by sending nothing: the residual stays small against what went through.
  EXPECT_LT(residual.abs().max().item<double>(), estimates.abs().max().item<double>() / 2);
}

// Without feedback the estimate is C(mean of C(g_i)) of this step alone.
TEST_P(Conservation, WithoutFeedbackTheEstimateIsTheCodedMeanOfCodes) {
  const int size = GetParam();
  const PlainCodec codec(Sign{64});
  const auto coded = [&](const at::Tensor& values) {
    at::Tensor payload = at::empty({codec.payload_bytes(values.numel(), at::kDouble)}, at::kByte);
    codec.encode(values, payload, {});
    at::Tensor decoded = at::zeros_like(values);
    codec.decode_add(payload, 1, decoded);
    return decoded;
  };
  run_ranks(size, [&](auto communicator) {
    Bucket bucket = make_bucket({{33, 17}, {5}, {70, 40}}, at::kDouble);
    const auto reducer = make_reducer(kSignPlain);
    reducer->prepare(bucket, communicator->rank(), size);
    for (int step = 0; step < 500; ++step) {
      bucket.gradient.copy_(random_gradient(bucket, step, communicator->rank()));
      reducer->stage(bucket, *communicator, {.step = step, .seed = 1});
      reducer->settle(*communicator);
      reducer->commit(bucket);
      if (step % 100 != 0) continue;
      for (const auto& slice : bucket.slices) {
        at::Tensor mean = at::zeros({slice.numel}, at::kDouble);
        for (int rank = 0; rank < size; ++rank) {
          const at::Tensor g =
              random_gradient(bucket, step, rank).narrow(0, slice.offset, slice.numel);
          mean += slice.is_vector() ? g : coded(g);
        }
        if (size > 1) mean /= size;
        const at::Tensor expected = slice.is_vector() ? mean : coded(mean);
        EXPECT_TRUE(bucket.gradient.narrow(0, slice.offset, slice.numel).equal(expected));
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, Conservation, ::testing::Values(1, 2, 3, 4, 7));

TEST(Reducer, DenseAndIdentityTwoStageAreTheExactMean) {
  for (const auto& options : {kDense, kIdentityTwoStage}) {
    run_ranks(4, [&](auto communicator) {
      Bucket bucket = make_bucket(mixed_shapes());
      const auto reducer = make_reducer(options);
      reducer->prepare(bucket, communicator->rank(), 4);
      // Multiples of 1/8 below 16: sums and their quarters are exact.
      at::Tensor expected = at::zeros({bucket.numel()});
      for (int rank = 0; rank < 4; ++rank) {
        const at::Tensor g = (random_gradient(bucket, 0, rank) * 100).round() / 8;
        if (rank == communicator->rank()) bucket.gradient.copy_(g);
        expected += g;
      }
      reducer->stage(bucket, *communicator, {});
      reducer->settle(*communicator);
      EXPECT_FALSE(reducer->non_finite(bucket));
      reducer->commit(bucket);
      EXPECT_TRUE(bucket.gradient.equal(expected / 4));
    });
  }
}

// NaN or Inf on one rank in any slice: every rank says so, and a rollback restores every byte.
TEST(Reducer, ANonFiniteValueOnOneRankRollsEverythingBack) {
  const double bad_values[] = {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity()};
  for (const auto& options : {kDense, kIdentityTwoStage, kSignPlain, kSignFeedback}) {
    for (const auto transmission : {Transmission::compressed, Transmission::dense}) {
      run_ranks(3, [&](auto communicator) {
        Bucket bucket = make_bucket(mixed_shapes());
        const auto reducer = make_reducer(options);
        reducer->prepare(bucket, communicator->rank(), 3);
        std::int64_t step = 0;
        const auto run = [&](double bad, std::size_t slice) {
          bucket.gradient.copy_(random_gradient(bucket, step, communicator->rank()));
          if (bad != 0 && communicator->rank() == static_cast<int>(slice % 3)) {
            bucket.gradient[bucket.slices[slice].end() - 1] = bad;
          }
          reducer->stage(bucket, *communicator,
                         {.step = step++, .seed = 1, .transmission = transmission});
          reducer->settle(*communicator);
          return reducer->non_finite(bucket);
        };
        ASSERT_FALSE(run(0, 0));
        reducer->commit(bucket);
        for (const double bad : bad_values) {
          for (std::size_t slice = 0; slice < bucket.slices.size(); ++slice) {
            if (bucket.slices[slice].numel == 0) continue;
            Snapshot before;
            reducer->visit(bucket, before);
            EXPECT_EQ(run(bad, slice), bucket.slices[slice].name) << bad;
            reducer->rollback(bucket);
            Snapshot after;
            reducer->visit(bucket, after);
            EXPECT_TRUE(before == after);
          }
        }
        // Training goes on.
        ASSERT_FALSE(run(0, 0));
        reducer->commit(bucket);
        EXPECT_TRUE(at::isfinite(bucket.gradient).all().item<bool>());
      });
    }
  }
}

TEST(Reducer, AFrozenSliceHoldsItsResidualAndSendsNothing) {
  run_ranks(3, [&](auto communicator) {
    Bucket bucket = make_bucket({{40, 30}, {20, 50}, {64, 64}});
    const auto meter = std::make_shared<Meter>();
    const auto metered = make_metered(std::move(communicator), meter);
    const auto reducer = make_reducer(kSignFeedback);
    reducer->prepare(bucket, metered->rank(), 3);
    const auto step = [&](std::int64_t number) {
      bucket.gradient.copy_(random_gradient(bucket, number, metered->rank()));
      const auto before = meter->total().bytes_sent;
      reducer->stage(bucket, *metered, {.step = number, .seed = 1});
      reducer->settle(*metered);
      EXPECT_FALSE(reducer->non_finite(bucket));
      reducer->commit(bucket);
      return meter->total().bytes_sent - before;
    };
    const auto all = step(0);
    const auto residual_of_1 = [&] {
      Snapshot snapshot;
      reducer->visit(bucket, snapshot);
      std::vector<at::Tensor> parts;
      for (const auto& [entry, copy] : snapshot.entries) {
        if (entry.name.ends_with("/p1")) parts.push_back(copy.flatten());
      }
      return at::cat(parts);
    };
    const at::Tensor before = residual_of_1();
    EXPECT_GT(before.abs().max().item<float>(), 0);
    resting::set_frozen(bucket, 1, true);
    const auto some = step(1);
    EXPECT_LT(some, all);
    EXPECT_TRUE(residual_of_1().equal(before));
    EXPECT_TRUE(bucket.gradient.narrow(0, bucket.slices[1].offset, 1000).equal(at::zeros({1000})));
    resting::set_frozen(bucket, 1, false);
    step(2);
    EXPECT_FALSE(residual_of_1().equal(before));
  });
}

// Steps that go uncompressed send what is not frozen, in whatever places that lies, and nothing
// else: not even a NaN that somebody left in a frozen slice.
TEST(Reducer, DenseStepsSendNoFrozenSlices) {
  constexpr int kSize = 3;
  const CompressionOptions power_sgd{PowerSgd{}};
  const CompressionOptions econtrol{Sign{64}, {FeedbackKind::econtrol, 0.1}};
  for (const auto& options : {kDense, kSignFeedback, econtrol, power_sgd}) {
    for (const auto make :
         {+[](const CompressionOptions& o) { return make_reducer(o); }, reference::make_reducer}) {
      run_ranks(kSize, [&](auto communicator) {
        const int rank = communicator->rank();
        Bucket bucket = make_bucket({{40, 30}, {5}, {20, 50}, {7}, {64, 64}});
        const auto meter = std::make_shared<Meter>();
        const auto metered = make_metered(make_checked(std::move(communicator)), meter);
        const auto reducer = make(options);
        reducer->prepare(bucket, rank, kSize);
        const auto gradient_of = [&](std::int64_t step, int whose) {
          return (random_gradient(bucket, step, whose) * 100).round() / 8;  // sums are exact
        };
        std::int64_t step = 0;
        // Which are frozen, as bits.
        for (const unsigned frozen : {0U, 0b00001U, 0b10000U, 0b00100U, 0b01010U, 0b11111U, 0U}) {
          at::Tensor expected = at::zeros({bucket.numel()});
          for (int i = 0; i < kSize; ++i) expected += gradient_of(step, i);
          expected /= kSize;
          bucket.gradient.copy_(gradient_of(step, rank));
          std::int64_t live = 0;
          for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
            Slice& slice = bucket.slices[i];
            resting::set_frozen(bucket, i, (frozen >> i & 1U) != 0);
            if (bucket.layout.rests(i)) {
              bucket.gradient.narrow(0, slice.offset, slice.numel)
                  .fill_(rank == 1 ? std::numeric_limits<double>::quiet_NaN() : rank);
              expected.narrow(0, slice.offset, slice.numel).zero_();
            } else {
              live += slice.numel;
            }
          }
          const auto before = meter->total().bytes_sent;
          reducer->stage(bucket, *metered,
                         {.step = step++, .seed = 1, .transmission = Transmission::dense});
          reducer->settle(*metered);
          EXPECT_FALSE(reducer->non_finite(bucket));
          reducer->commit(bucket);
          const auto sent = static_cast<double>(meter->total().bytes_sent - before);
          // Shares differ by an element, and there are gaps of less than 16 behind slices.
          EXPECT_NEAR(sent, ring_bytes(4.0 * static_cast<double>(live), kSize), 4 * 5 * 16)
              << frozen;
          if (live == 0) {
            EXPECT_EQ(sent, 0);
          }
          EXPECT_TRUE(bucket.gradient.equal(expected)) << frozen;
        }
      });
    }
  }
}

// 1 bit cannot say zero: rows that are always zero must not make the residual grow.
TEST(Reducer, TheResidualStaysBoundedOnAHalfDeadEmbedding) {
  run_ranks(2, [&](auto communicator) {
    Bucket bucket = make_bucket({{64, 8}});
    const auto reducer = make_reducer({Sign{128}, {FeedbackKind::error_feedback}});
    reducer->prepare(bucket, communicator->rank(), 2);
    double largest = 0;
    for (int step = 0; step < 100000; ++step) {
      const at::Tensor gradient = random_gradient(bucket, step % 257, communicator->rank());
      bucket.gradient.copy_(gradient);
      bucket.gradient.view({64, 8}).slice(0, 0, 64, 2).zero_();
      reducer->stage(bucket, *communicator, {.step = step, .seed = 1});
      reducer->settle(*communicator);
      reducer->commit(bucket);
      if (step % 1000 != 999) continue;
      TotalResidual total(bucket);
      reducer->visit(bucket, total);
      largest = std::max(largest, total.worker.abs().max().item<double>());
    }
    EXPECT_LT(largest, 30);
  });
}

TEST(Owners, ChunksCoverTheBucketOnceInOrderAtBlockBoundaries) {
  const std::shared_ptr<const Codec> codec = make_codec(Sign{64});
  for (const int size : {1, 2, 3, 4, 7, 16, 200}) {
    const Bucket bucket = make_bucket(mixed_shapes());
    const CodecOfSlice codecs(bucket.slices.size(), codec);
    const auto chunks = cut_into_chunks(bucket, codecs, size);
    ASSERT_EQ(chunks.size(), static_cast<std::size_t>(size));
    std::vector<int> covered(static_cast<std::size_t>(bucket.numel()), 0);
    std::int64_t last = 0;
    std::int64_t bytes = 0;
    std::int64_t largest = 0;
    for (const auto& chunk : chunks) {
      for (const auto& piece : chunk.pieces) {
        EXPECT_GE(piece.begin, last);
        last = piece.begin + piece.count;
        EXPECT_EQ((piece.begin - bucket.slices[piece.slice].offset) % 64, 0);
        for (std::int64_t i = piece.begin; i < last; ++i) ++covered[static_cast<std::size_t>(i)];
      }
      const std::int64_t own = reference::payload_bytes(bucket, chunk, codecs);
      bytes += own;
      largest = std::max(largest, own);
    }
    for (const auto& slice : bucket.slices) {
      for (std::int64_t i = slice.offset; i < slice.end(); ++i) {
        EXPECT_EQ(covered[static_cast<std::size_t>(i)], 1);
      }
    }
    EXPECT_LE(largest, bytes / size + 2 * codec->payload_bytes(64, at::kFloat));
  }
}

TEST(Options, CombinationsThatMakeNoSenseListThoseThatDo) {
  EXPECT_NO_THROW(parse_compression("sign:block=4096", "auto"));
  EXPECT_EQ(parse_compression("sign", "auto").feedback.kind, FeedbackKind::error_feedback);
  EXPECT_EQ(parse_compression("none", "auto").feedback.kind, FeedbackKind::none);
  const auto message_of = [](const std::string& compressor, const std::string& feedback) {
    try {
      parse_compression(compressor, feedback);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_NE(message_of("none", "error_feedback").find("choose from none x none x all_reduce"),
            std::string::npos);
  EXPECT_NE(message_of("sing", "auto").find("did you mean 'sign'"), std::string::npos);
  EXPECT_NE(message_of("sign:blok=8", "auto").find("did you mean 'block'"), std::string::npos);
  EXPECT_NE(message_of("sign:block=12", "auto").find("multiple of 8"), std::string::npos);
  EXPECT_NE(message_of("sign:block=0", "auto").find("from 8"), std::string::npos);
  EXPECT_NE(message_of("sign", "error-feedback").find("did you mean 'error_feedback'"),
            std::string::npos);
  EXPECT_THROW(make_reducer({Sign{}, {FeedbackKind::none}, ExchangeKind::all_reduce}), UsageError);
}

}  // namespace
}  // namespace thinwire
