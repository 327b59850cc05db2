// The plans of all ranks, carried out on one thread by links that deliver when they like.
#include "collectives/transfers/transfers.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <numeric>
#include <random>

namespace thinwire {
namespace {

constexpr int kStreams = Transfers::kStreams;
constexpr auto kKinds = {OperationKind::all_reduce, OperationKind::reduce_scatter,
                         OperationKind::all_gather, OperationKind::all_to_all,
                         OperationKind::broadcast};

// What a transport does with the messages of one stream to one peer, or from one.
struct Posted {
  std::deque<Transfers::Message> underway;  // oldest first
  std::vector<Transfers::Message> carried;  // that the transport has not told of
  std::int64_t bytes = 0;                   // of all that were handed out
  std::int64_t messages = 0;
};

// One rank's tensors and plan.
struct Member {
  at::Tensor input, output;
  std::unique_ptr<BlockPool> pool;
  std::unique_ptr<Transfers> transfers;
  std::map<std::pair<int, int>, Posted> sending;  // by peer and stream
  std::map<std::pair<int, int>, Posted> receiving;
};

struct Case {
  OperationKind kind = OperationKind::all_reduce;
  // Of a sum, an all_gather and a broadcast: elements by rank. Of an all_to_all: by sender, then by
  // receiver.
  std::vector<Counts> counts;
  TransferOptions options;
  std::size_t window = 1;  // messages posted of a stream, in each direction
  ReduceOp op = ReduceOp::sum;
  int root = 0;

  int size() const { return static_cast<int>(counts.front().size()); }
};

std::int64_t at_rank(const Counts& counts, int rank) {
  return counts[static_cast<std::size_t>(rank)];
}

std::int64_t sum_of(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

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

// The sum by a plain loop: every term once, from the rank behind the owner to the owner.
at::Tensor serial_sum(const std::vector<at::Tensor>& inputs, const Counts& counts, ReduceOp op) {
  const int size = static_cast<int>(inputs.size());
  at::Tensor sum = at::empty({inputs.front().numel()});
  std::int64_t i = 0;
  for (int owner = 0; owner < size; ++owner) {
    const std::int64_t end = i + at_rank(counts, owner);
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

// What each rank has in the end, by plain loops.
std::vector<at::Tensor> expected_outputs(const Case& how, const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> outputs;
  for (int rank = 0; rank < how.size(); ++rank) {
    const Counts& counts = how.counts.front();
    switch (how.kind) {
      case OperationKind::all_reduce:
        outputs.push_back(serial_sum(inputs, counts, how.op));
        break;
      case OperationKind::reduce_scatter:
        outputs.push_back(serial_sum(inputs, counts, how.op)
                              .narrow(0, at_rank(offsets_of(counts), rank), at_rank(counts, rank)));
        break;
      case OperationKind::broadcast:
        outputs.push_back(inputs[static_cast<std::size_t>(how.root)].clone());
        break;
      default: {
        std::vector<float> all;
        for (int from = 0; from < how.size(); ++from) {
          const at::Tensor& input = inputs[static_cast<std::size_t>(from)];
          const float* begin = input.data_ptr<float>();
          std::int64_t count = input.numel();
          if (how.kind == OperationKind::all_to_all) {
            const Counts& row = how.counts[static_cast<std::size_t>(from)];
            begin += at_rank(offsets_of(row), rank);
            count = at_rank(row, rank);
          }
          all.insert(all.end(), begin, begin + count);
        }
        outputs.push_back(at::empty({static_cast<std::int64_t>(all.size())}));
        std::copy(all.begin(), all.end(), outputs.back().data_ptr<float>());
      }
    }
  }
  return outputs;
}

Operation call_of(const Case& how, int rank, const at::Tensor& input) {
  const Counts& counts = how.counts.front();
  Operation call{how.kind, how.op, input, input, {}, {}, how.root};
  switch (how.kind) {
    case OperationKind::all_reduce:
    case OperationKind::broadcast:
      call.output_counts = counts;
      break;
    case OperationKind::reduce_scatter:
      call.input_counts = counts;
      call.output = at::full({at_rank(counts, rank)}, -7.0F);
      break;
    case OperationKind::all_gather:
      call.output_counts = counts;
      call.output = at::full({sum_of(counts)}, -7.0F);
      break;
    default:
      call.input_counts = how.counts[static_cast<std::size_t>(rank)];
      for (const Counts& row : how.counts) call.output_counts.push_back(at_rank(row, rank));
      call.output = at::full({sum_of(call.output_counts)}, -7.0F);
  }
  return call;
}

// Posts what may go. What one rank sends the other must expect alike.
void post(const Case& how, int rank, Member& me) {
  for (bool posted = true; posted;) {
    posted = false;
    for (int peer = 0; peer < how.size(); ++peer) {
      if (peer == rank) continue;
      for (int stream = 0; stream < kStreams; ++stream) {
        const auto take = [&](Posted& to, auto next) {
          while (to.underway.size() + to.carried.size() < how.window) {
            const auto message = next();
            if (!message) return;
            to.underway.push_back(*message);
            to.bytes += message->bytes;
            ++to.messages;
            posted = true;
          }
        };
        take(me.receiving[{peer, stream}],
             [&] { return me.transfers->next_to_receive(peer, stream); });
        take(me.sending[{peer, stream}], [&] { return me.transfers->next_to_send(peer, stream); });
      }
    }
  }
}

// Tells one rank of a message that has been carried, not always of the oldest.
template <typename Tell>
bool tell(Posted& of, std::mt19937& random, Tell tell_it) {
  if (of.carried.empty()) return false;
  const auto which = of.carried.begin() + static_cast<std::ptrdiff_t>(random() % of.carried.size());
  const Transfers::Message message = *which;
  of.carried.erase(which);
  tell_it(message);
  return true;
}

// Carries one message from `rank` to `peer` now and then, and tells the ends in any order.
bool carry(std::vector<Member>& members, int rank, int peer, int stream, std::mt19937& random) {
  Member& me = members[static_cast<std::size_t>(rank)];
  Member& other = members[static_cast<std::size_t>(peer)];
  Posted& sending = me.sending[{peer, stream}];
  Posted& receiving = other.receiving[{rank, stream}];
  bool could = !sending.carried.empty() || !receiving.carried.empty();
  if (random() % 2 == 0) {
    tell(sending, random, [&](const auto& message) { me.transfers->sent(peer, stream, message); });
  }
  if (random() % 2 == 0) {
    tell(receiving, random,
         [&](const auto& message) { other.transfers->received(rank, stream, message); });
  }
  if (sending.underway.empty() || receiving.underway.empty()) return could;
  if (random() % 3 != 0) return true;
  const Transfers::Message from = sending.underway.front();
  const Transfers::Message to = receiving.underway.front();
  sending.underway.pop_front();
  receiving.underway.pop_front();
  EXPECT_EQ(from.bytes, to.bytes);
  if (from.bytes > 0) std::memcpy(to.data, from.data, static_cast<std::size_t>(from.bytes));
  sending.carried.push_back(from);
  receiving.carried.push_back(to);
  return true;
}

void run(const Case& how, std::vector<Member>& members, std::mt19937& random) {
  while (true) {
    bool done = true;
    for (int rank = 0; rank < how.size(); ++rank) {
      Member& me = members[static_cast<std::size_t>(rank)];
      post(how, rank, me);
      done = done && me.transfers->done();
    }
    if (done) return;
    bool can_move = false;
    for (int rank = 0; rank < how.size(); ++rank) {
      for (int peer = 0; peer < how.size(); ++peer) {
        if (peer == rank) continue;
        for (int stream = 0; stream < kStreams; ++stream) {
          can_move = carry(members, rank, peer, stream, random) || can_move;
        }
      }
    }
    ASSERT_TRUE(can_move) << "all ranks wait for each other";
  }
}

// Both ends of every stream have handed out its bytes, each once, in messages that are alike.
void check_streams(const Case& how, std::vector<Member>& members) {
  std::int64_t sent_by_all = 0;
  std::int64_t by_direct_algorithms = 0;
  for (int rank = 0; rank < how.size(); ++rank) {
    Member& me = members[static_cast<std::size_t>(rank)];
    for (int peer = 0; peer < how.size(); ++peer) {
      if (peer == rank) continue;
      Member& other = members[static_cast<std::size_t>(peer)];
      for (int stream = 0; stream < kStreams; ++stream) {
        const Posted& sending = me.sending[{peer, stream}];
        const Posted& receiving = other.receiving[{rank, stream}];
        EXPECT_EQ(sending.bytes, me.transfers->bytes_to_send(peer, stream));
        EXPECT_EQ(receiving.bytes, other.transfers->bytes_to_receive(rank, stream));
        EXPECT_EQ(sending.bytes, receiving.bytes);
        EXPECT_EQ(sending.messages, receiving.messages);
        EXPECT_TRUE(sending.underway.empty() && sending.carried.empty());
        EXPECT_TRUE(receiving.underway.empty() && receiving.carried.empty());
        sent_by_all += sending.bytes;
      }
    }
    const Operation call = call_of(how, rank, me.input);
    by_direct_algorithms += direct_bytes_sent(call, rank, how.size());
  }
  EXPECT_EQ(sent_by_all, by_direct_algorithms);
}

void check_case(const Case& how, unsigned seed) {
  std::vector<at::Tensor> inputs;
  for (int rank = 0; rank < how.size(); ++rank) {
    std::int64_t count = sum_of(how.counts.front());
    if (how.kind == OperationKind::all_gather) count = at_rank(how.counts.front(), rank);
    if (how.kind == OperationKind::all_to_all) {
      count = sum_of(how.counts[static_cast<std::size_t>(rank)]);
    }
    inputs.push_back(seed % 2 == 0 ? rough(rank, count) : odd(rank, count));
  }
  std::vector<Member> members(inputs.size());
  for (int rank = 0; rank < how.size(); ++rank) {
    Member& me = members[static_cast<std::size_t>(rank)];
    me.input = inputs[static_cast<std::size_t>(rank)].clone();
    const Operation call = call_of(how, rank, me.input);
    me.output = call.output;
    me.pool = std::make_unique<BlockPool>(how.options.message_bytes);
    me.transfers = plan_transfers(call, rank, how.size(), how.options, *me.pool);
  }
  std::mt19937 random(seed);
  run(how, members, random);
  if (::testing::Test::HasFailure()) return;
  const auto expected = expected_outputs(how, inputs);
  for (int rank = 0; rank < how.size(); ++rank) {
    const auto at = static_cast<std::size_t>(rank);
    EXPECT_TRUE(same_bits(members[at].output, expected[at])) << "rank " << rank;
    if (members[at].output.is_same(members[at].input)) continue;
    EXPECT_TRUE(same_bits(members[at].input, inputs[at])) << "rank " << rank;
  }
  check_streams(how, members);
}

Counts ragged(int size, unsigned most, std::mt19937& random) {
  Counts counts;
  for (int rank = 0; rank < size; ++rank) {
    counts.push_back(random() % 4 == 0 ? 0 : random() % most);
  }
  return counts;
}

TEST(Transfers, EqualPlainLoopsHoweverMessagesCome) {
  std::mt19937 random(7);
  for (const OperationKind kind : kKinds) {
    for (const int size : {1, 2, 3, 4, 5, 7, 8}) {
      for (unsigned round = 0; round < 24; ++round) {
        Case how;
        how.kind = kind;
        how.op = std::array{ReduceOp::sum, ReduceOp::min, ReduceOp::max}[round % 3];
        how.root = static_cast<int>(round) % size;
        how.window = 1 + random() % 80;
        how.options.message_bytes = 4 * static_cast<std::int64_t>(1 + random() % 50);
        how.options.empty_shares = round % 2 == 0 ? EmptyShares::travel : EmptyShares::stay;
        // Half of the sums may go round a ring, as several groups of pieces.
        if (round % 4 < 2) {
          how.options.ring_piece_bytes = 4 * static_cast<std::int64_t>(1 + random() % 5);
        }
        const unsigned most = round % 3 == 0 ? 40 : size > 4 ? 500 : 1500;
        const int rows = kind == OperationKind::all_to_all ? size : 1;
        for (int row = 0; row < rows; ++row) {
          how.counts.push_back(ragged(size, most / static_cast<unsigned>(rows) + 1, random));
        }
        SCOPED_TRACE(::testing::Message()
                     << name(kind) << " " << ::testing::PrintToString(how.counts)
                     << " in messages of " << how.options.message_bytes << " bytes, "
                     << how.options.ring_piece_bytes << " round a ring, " << how.window
                     << " at a time");
        check_case(how, round / 2);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(Transfers, AMessageIsAtLeastOneElement) {
  for (const std::int64_t ring : {0, 1}) {
    for (const Counts& counts : {Counts{3, 2, 2}, Counts{3, 2}}) {
      check_case({OperationKind::all_reduce, {counts}, {1, ring, EmptyShares::stay}, 4}, 1);
    }
  }
}

// The messages between a rank and each peer before anything has come.
std::vector<std::int64_t> first_messages(OperationKind kind, int size, EmptyShares empty_shares) {
  Operation call;
  if (kind != OperationKind::barrier) {
    call =
        make_all_to_all(at::empty({0}), at::empty({0}), Counts(static_cast<std::size_t>(size), 0),
                        Counts(static_cast<std::size_t>(size), 0), size);
  }
  BlockPool pool(64);
  const auto transfers = plan_transfers(call, 0, size, {64, 64, empty_shares}, pool);
  EXPECT_EQ(transfers->done(), size == 1 || empty_shares == EmptyShares::stay);
  std::vector<std::int64_t> messages;
  for (int peer = 1; peer < size; ++peer) {
    messages.push_back(0);
    while (const auto message = transfers->next_to_send(peer, 0)) {
      EXPECT_EQ(message->bytes, 0);
      ++messages.back();
      transfers->sent(peer, 0, *message);
    }
    while (const auto message = transfers->next_to_receive(peer, 0)) {
      EXPECT_EQ(message->bytes, 0);
      transfers->received(peer, 0, *message);
    }
  }
  EXPECT_TRUE(transfers->done());
  return messages;
}

TEST(Transfers, AnOperationWithoutBytesIsMetByAllWhereTheTransportNeedsThat) {
  for (const auto kind : {OperationKind::barrier, OperationKind::all_to_all}) {
    EXPECT_EQ(first_messages(kind, 3, EmptyShares::travel), (std::vector<std::int64_t>{1, 1}));
    EXPECT_EQ(first_messages(kind, 3, EmptyShares::stay), (std::vector<std::int64_t>{0, 0}));
    EXPECT_EQ(first_messages(kind, 1, EmptyShares::travel), std::vector<std::int64_t>{});
  }
}

// A result may come to where terms lie that are still being read.
TEST(Transfers, AResultWaitsForTheTermsWhosePlaceItTakes) {
  at::Tensor tensor = at::full({6}, 1.0F);
  BlockPool pool(8);
  const Operation call = make_all_reduce(tensor, ReduceOp::sum, 3);
  const auto transfers = plan_transfers(call, 0, 3, {8, 0, EmptyShares::stay}, pool);
  const auto terms = transfers->next_to_send(1, 0);
  ASSERT_TRUE(terms);
  EXPECT_FALSE(transfers->next_to_receive(1, 1));
  transfers->sent(1, 0, *terms);
  const auto result = transfers->next_to_receive(1, 1);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->data, terms->data);
}

// Finished pieces are passed on while the next ones still come.
TEST(Transfers, APieceIsPassedOnAsSoonAsItIsSummed) {
  at::Tensor tensor = at::full({8}, 1.0F);
  BlockPool pool(8);
  const Operation call = make_all_reduce(tensor, ReduceOp::sum, 2);
  const auto transfers = plan_transfers(call, 0, 2, {8, 0, EmptyShares::stay}, pool);
  EXPECT_FALSE(transfers->next_to_send(1, 1));
  const auto terms = transfers->next_to_receive(1, 0);
  ASSERT_TRUE(terms);
  ASSERT_EQ(terms->bytes, 8);
  std::fill_n(reinterpret_cast<float*>(terms->data), 2, 3.0F);
  transfers->received(1, 0, *terms);
  const auto result = transfers->next_to_send(1, 1);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->bytes, 8);
  EXPECT_EQ(reinterpret_cast<const float*>(result->data)[1], 4.0F);
  EXPECT_FALSE(transfers->next_to_send(1, 1));
}

// The same for a broadcast: a rank passes on what it has got of its share.
TEST(Transfers, ABroadcastIsPassedOnPieceByPiece) {
  at::Tensor tensor = at::full({12}, 1.0F);
  BlockPool pool(8);
  const Operation call = make_broadcast(tensor, 0, 3);
  const auto transfers = plan_transfers(call, 1, 3, {8, 0, EmptyShares::stay}, pool);
  const auto first = transfers->next_to_receive(0, 0);
  const auto second = transfers->next_to_receive(0, 0);
  ASSERT_TRUE(first && second);
  transfers->received(0, 0, *second);
  EXPECT_FALSE(transfers->next_to_send(2, 1));
  transfers->received(0, 0, *first);
  EXPECT_TRUE(transfers->next_to_send(2, 1));
  EXPECT_TRUE(transfers->next_to_send(2, 1));
  EXPECT_FALSE(transfers->next_to_send(0, 1));
}

}  // namespace
}  // namespace thinwire
