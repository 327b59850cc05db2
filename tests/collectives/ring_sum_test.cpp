#include "collectives/ring_sum.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <numeric>
#include <random>

namespace thinwire {
namespace {

// One rank's tensors and its part in the ring. In flight: what was posted and has not ended.
struct Member {
  at::Tensor input, output;
  std::unique_ptr<RingSum> ring;
  std::deque<RingSum::Message> sending;  // to the next rank, oldest first
  std::deque<RingSum::Message> receiving;
};

// Terms of very different sizes: any other order of additions rounds differently.
at::Tensor rough(int rank, std::int64_t count) {
  at::Tensor tensor = at::empty({count});
  std::mt19937 random(static_cast<unsigned>(rank));
  for (std::int64_t i = 0; i < count; ++i) {
    const auto mixed = static_cast<std::uint32_t>(random());
    tensor.data_ptr<float>()[i] =
        std::ldexp(static_cast<float>(mixed % 4097) - 2048.0F, static_cast<int>(mixed >> 28));
  }
  return tensor;
}

// Zeros of both signs and numbers that are none: what becomes of them depends on the order.
at::Tensor odd(int rank, std::int64_t count) {
  at::Tensor tensor = at::empty({count});
  std::mt19937 random(static_cast<unsigned>(100 + rank));
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t i = 0; i < count; ++i) {
    const float values[] = {0.0F, -0.0F, nan, 1.0F};
    tensor.data_ptr<float>()[i] = values[random() % 4];
  }
  return tensor;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() == b.numel() && std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0;
}

// The sum by a plain loop.
at::Tensor expected(const std::vector<at::Tensor>& inputs, const Counts& counts, ReduceOp op) {
  const int size = static_cast<int>(inputs.size());
  at::Tensor sum = at::empty({inputs.front().numel()});
  std::int64_t i = 0;
  for (int owner = 0; owner < size; ++owner) {
    const std::int64_t end = i + counts[static_cast<std::size_t>(owner)];
    for (; i < end; ++i) {
      const auto term = [&](int step) {
        const int rank = (owner + 1 + step) % size;
        return inputs[static_cast<std::size_t>(rank)].data_ptr<float>() + i;
      };
      float value = *term(0);
      for (int step = 1; step < size; ++step) reduce_into(at::kFloat, op, &value, term(step), 1);
      sum.data_ptr<float>()[i] = value;
    }
  }
  return sum;
}

struct Case {
  OperationKind kind;
  Counts counts;
  std::int64_t piece_bytes;
  std::size_t window;  // messages posted in each direction
  ReduceOp op = ReduceOp::sum;
};

// Runs the ring over links that deliver at times of their own; whoever may not go on stands still.
// Returns the bytes that each rank sent.
std::vector<std::int64_t> run(const Case& how, std::vector<Member>& members, std::mt19937& random) {
  const std::size_t size = members.size();
  std::vector<std::int64_t> sent(size);
  while (true) {
    bool done = true;
    bool can_move = false;
    for (std::size_t rank = 0; rank < size; ++rank) {
      Member& me = members[rank];
      for (bool posted = true; posted;) {
        posted = false;
        while (me.receiving.size() < how.window) {
          const auto next = me.ring->next_to_receive();
          if (!next) break;
          me.receiving.push_back(*next);
          posted = true;
        }
        while (me.sending.size() < how.window) {
          const auto next = me.ring->next_to_send();
          if (!next) break;
          me.sending.push_back(*next);
          sent[rank] += next->bytes;
          posted = true;
        }
      }
      // Whoever waits has a message that it waits for.
      EXPECT_TRUE(me.ring->done() || !me.sending.empty() || !me.receiving.empty());
      done = done && me.ring->done();
    }
    if (done) return sent;
    for (std::size_t rank = 0; rank < size; ++rank) {
      Member& me = members[rank];
      Member& behind = members[(rank + 1) % size];
      if (me.sending.empty() || behind.receiving.empty()) continue;
      can_move = true;
      if (random() % 3 != 0) continue;
      const RingSum::Message from = me.sending.front();
      const RingSum::Message to = behind.receiving.front();
      me.sending.pop_front();
      behind.receiving.pop_front();
      EXPECT_EQ(from.bytes, to.bytes);
      std::memcpy(to.data, from.data, static_cast<std::size_t>(from.bytes));
      // Both ends of a message are told, in either order.
      if (random() % 2 == 0) {
        me.ring->sent(from.place);
        behind.ring->received(to.place);
      } else {
        behind.ring->received(to.place);
        me.ring->sent(from.place);
      }
    }
    if (!can_move) {
      ADD_FAILURE() << "the ring stands still";
      return sent;
    }
  }
}

void check_sum(const Case& how, unsigned seed) {
  const auto size = static_cast<int>(how.counts.size());
  const std::int64_t numel = std::accumulate(how.counts.begin(), how.counts.end(), std::int64_t{0});
  std::vector<at::Tensor> inputs;
  for (int rank = 0; rank < size; ++rank) {
    inputs.push_back(seed % 2 == 0 ? rough(rank, numel) : odd(rank, numel));
  }
  const at::Tensor sum = expected(inputs, how.counts, how.op);
  std::vector<Member> members(how.counts.size());
  for (int rank = 0; rank < size; ++rank) {
    Member& me = members[static_cast<std::size_t>(rank)];
    me.input = inputs[static_cast<std::size_t>(rank)].clone();
    Operation call{how.kind, how.op, me.input, me.input, {}, {}, 0};
    if (how.kind == OperationKind::all_reduce) {
      call.output_counts = how.counts;
    } else {
      call.output = at::empty({how.counts[static_cast<std::size_t>(rank)]});
      call.input_counts = how.counts;
    }
    me.output = call.output;
    me.ring = std::make_unique<RingSum>(call, rank, size, how.piece_bytes);
  }
  std::mt19937 random(seed);
  const auto sent = run(how, members, random);
  std::int64_t begin = 0;
  std::int64_t sent_by_all = 0;
  for (int rank = 0; rank < size; ++rank) {
    const Member& me = members[static_cast<std::size_t>(rank)];
    const std::int64_t count = how.counts[static_cast<std::size_t>(rank)];
    sent_by_all += sent[static_cast<std::size_t>(rank)];
    if (how.kind == OperationKind::all_reduce) {
      EXPECT_TRUE(same_bits(me.output, sum)) << "rank " << rank;
    } else {
      EXPECT_TRUE(same_bits(me.output, sum.narrow(0, begin, count))) << "rank " << rank;
      EXPECT_TRUE(same_bits(me.input, inputs[static_cast<std::size_t>(rank)])) << "rank " << rank;
    }
    begin += count;
  }
  const int phases = how.kind == OperationKind::all_reduce ? 2 : 1;
  EXPECT_EQ(sent_by_all, phases * (size - 1) * numel * 4);
}

TEST(RingSum, EqualsThePlainLoopHoweverMessagesCome) {
  std::mt19937 random(7);
  for (const OperationKind kind : {OperationKind::all_reduce, OperationKind::reduce_scatter}) {
    for (const int size : {1, 2, 3, 4, 7}) {
      for (unsigned round = 0; round < 12; ++round) {
        Case how{kind, {}, 4 * static_cast<std::int64_t>(1 + random() % 5), 1 + random() % 80};
        how.op = std::array{ReduceOp::sum, ReduceOp::min, ReduceOp::max}[round % 3];
        // Several groups of pieces, and shares that are shorter than others, or empty.
        const unsigned most = round % 3 == 0 ? 40 : 1500;
        for (int rank = 0; rank < size; ++rank) {
          how.counts.push_back(random() % 4 == 0 ? 0 : random() % most);
        }
        SCOPED_TRACE(::testing::Message()
                     << ::testing::PrintToString(how.counts) << " in pieces of " << how.piece_bytes
                     << " bytes, " << how.window << " at a time");
        check_sum(how, round);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(RingSum, OnePieceIsAtLeastOneElement) {
  check_sum({OperationKind::all_reduce, {3, 2, 2}, 1, 4}, 1);
}

}  // namespace
}  // namespace thinwire
