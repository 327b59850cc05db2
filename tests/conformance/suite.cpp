#include "tests/conformance/suite.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "collectives/operation.h"

namespace thinwire::testing {
namespace {

// A small integer that is unique enough per (rank, index) to notice a misplaced element.
std::int64_t value(int rank, std::int64_t index) {
  return (rank * 31 + index * 7 + index / 5) % 97;
}

at::Tensor input_of(int rank, std::int64_t count, at::ScalarType dtype = at::kFloat) {
  at::Tensor tensor = at::empty({count}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i) tensor.data_ptr<std::int64_t>()[i] = value(rank, i);
  return tensor.to(dtype);
}

// The oracle: a loop over ranks on one rank.
at::Tensor serial(int size, std::int64_t count, ReduceOp op, at::ScalarType dtype) {
  at::Tensor result = input_of(0, count, at::kLong);
  for (int rank = 1; rank < size; ++rank) {
    const at::Tensor next = input_of(rank, count, at::kLong);
    if (op == ReduceOp::sum) result = result + next;
    if (op == ReduceOp::min) result = at::minimum(result, next);
    if (op == ReduceOp::max) result = at::maximum(result, next);
  }
  return result.to(dtype);
}

// 0, fewer than ranks, odd, and more than one transport segment.
const std::int64_t kSizes[] = {0, 1, 2, 3, 5, 8, 13, 64, 1001, 70003};

Counts uneven(int size, std::int64_t unit) {
  Counts counts;
  for (int rank = 0; rank < size; ++rank) counts.push_back((rank + 1) % 3 * unit + rank);
  return counts;
}

std::int64_t sum(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

}  // namespace

void all_reduce_equals_serial_sum(Communicator& communicator) {
  for (const std::int64_t count : kSizes) {
    at::Tensor tensor = input_of(communicator.rank(), count);
    communicator.all_reduce(tensor, ReduceOp::sum)->wait();
    EXPECT_TRUE(tensor.equal(serial(communicator.size(), count, ReduceOp::sum, at::kFloat)))
        << count;
  }
}

void all_reduce_every_dtype_and_op(Communicator& communicator) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kInt, at::kLong, at::kByte}) {
    for (const auto op : {ReduceOp::sum, ReduceOp::min, ReduceOp::max}) {
      at::Tensor tensor = input_of(communicator.rank(), 37, dtype);
      communicator.all_reduce(tensor, op)->wait();
      EXPECT_TRUE(tensor.equal(serial(communicator.size(), 37, op, dtype)))
          << toString(dtype) << " op " << static_cast<int>(op);
    }
  }
}

void reduce_scatter_equals_serial_sum(Communicator& communicator) {
  const int size = communicator.size();
  for (const std::int64_t unit : {0, 1, 7, 5000}) {
    const Counts counts = uneven(size, unit);
    const auto rank = static_cast<std::size_t>(communicator.rank());
    const at::Tensor input = input_of(communicator.rank(), sum(counts));
    const at::Tensor before = input.clone();
    at::Tensor output = at::full({counts[rank]}, -1.0f);
    communicator.reduce_scatter(output, input, ReduceOp::sum, counts)->wait();
    const at::Tensor expected = serial(size, sum(counts), ReduceOp::sum, at::kFloat);
    EXPECT_TRUE(output.equal(expected.narrow(0, offsets_of(counts)[rank], counts[rank])));
    EXPECT_TRUE(input.equal(before));
  }
}

void all_gather_uneven_shares(Communicator& communicator) {
  const int size = communicator.size();
  for (const std::int64_t unit : {0, 1, 7, 5000}) {
    const Counts counts = uneven(size, unit);
    at::Tensor output = at::full({sum(counts)}, -1.0f);
    communicator
        .all_gather(
            output,
            input_of(communicator.rank(), counts[static_cast<std::size_t>(communicator.rank())]),
            counts)
        ->wait();
    std::vector<at::Tensor> parts;
    for (int rank = 0; rank < size; ++rank) {
      parts.push_back(input_of(rank, counts[static_cast<std::size_t>(rank)]));
    }
    EXPECT_TRUE(output.equal(at::cat(parts)));
  }
}

void all_gather_in_place(Communicator& communicator) {
  const int size = communicator.size();
  at::Tensor output = at::full({4 * size}, -1.0f);
  at::Tensor mine = output.narrow(0, 4 * communicator.rank(), 4);
  mine.copy_(input_of(communicator.rank(), 4));
  communicator.all_gather(output, mine, {})->wait();
  for (int rank = 0; rank < size; ++rank) {
    EXPECT_TRUE(output.narrow(0, 4 * rank, 4).equal(input_of(rank, 4)));
  }
}

void all_to_all_is_a_transpose(Communicator& communicator) {
  const int size = communicator.size();
  const int me = communicator.rank();
  // Rank i sends (i + 2 j) % 5 * scale elements to rank j, each telling where it came from.
  for (const std::int64_t scale : {1, 4001}) {
    const auto count = [&](int from, int to) { return (from + 2 * to) % 5 * scale; };
    const auto part = [&](int from, int to) {
      return at::full({count(from, to)}, static_cast<double>(from * 100 + to), at::kFloat);
    };
    Counts out_counts;
    Counts in_counts;
    std::vector<at::Tensor> in_parts;
    std::vector<at::Tensor> out_parts;
    for (int peer = 0; peer < size; ++peer) {
      in_counts.push_back(count(me, peer));
      out_counts.push_back(count(peer, me));
      in_parts.push_back(part(me, peer));
      out_parts.push_back(part(peer, me));
    }
    at::Tensor output = at::full({sum(out_counts)}, -1.0f);
    communicator.all_to_all(output, at::cat(in_parts), out_counts, in_counts)->wait();
    EXPECT_TRUE(output.equal(at::cat(out_parts)));
  }
}

void broadcast_from_every_root(Communicator& communicator) {
  for (int root = 0; root < communicator.size(); ++root) {
    for (const std::int64_t count : kSizes) {
      at::Tensor tensor = input_of(communicator.rank() + 50, count);
      communicator.broadcast(tensor, root)->wait();
      EXPECT_TRUE(tensor.equal(input_of(root + 50, count)));
    }
  }
}

void several_operations_in_flight(Communicator& communicator) {
  std::vector<at::Tensor> tensors;
  std::vector<std::unique_ptr<Work>> works;
  for (int i = 0; i < 6; ++i) {
    tensors.push_back(input_of(communicator.rank(), 100 + i));
    works.push_back(communicator.all_reduce(tensors.back(), ReduceOp::sum));
  }
  for (int i = 0; i < 6; ++i) {
    works[static_cast<std::size_t>(i)]->wait();
    EXPECT_TRUE(tensors[static_cast<std::size_t>(i)].equal(
        serial(communicator.size(), 100 + i, ReduceOp::sum, at::kFloat)));
  }
}

void operations_wait_in_any_order(Communicator& communicator) {
  at::Tensor first = input_of(communicator.rank(), 3000);
  at::Tensor second = input_of(communicator.rank(), 10);
  auto work_first = communicator.all_reduce(first, ReduceOp::max);
  auto work_second = communicator.broadcast(second, 0);
  // MPI makes progress in whichever wait is running, so ranks may not wait in opposite orders for
  // operations that need two phases; the same order on every rank, last first, must work.
  work_second->wait();
  work_first->wait();
  EXPECT_TRUE(first.equal(serial(communicator.size(), 3000, ReduceOp::max, at::kFloat)));
  EXPECT_TRUE(second.equal(input_of(0, 10)));
}

void sums_are_formed_in_the_order_of_a_ring(Communicator& communicator) {
  // 2^24 + 1 rounds to 2^24, so the order of the additions shows in the result. The share of each
  // rank begins with the rank behind it.
  const int size = communicator.size();
  const auto term = [](int rank) {
    return rank == 0 ? 16777216.0f : 1.0f + static_cast<float>(rank);
  };
  at::Tensor tensor = at::full({9}, term(communicator.rank()));
  at::Tensor expected = at::empty({9});
  const Counts counts = make_all_reduce(tensor, ReduceOp::sum, size).output_counts;
  std::int64_t begin = 0;
  for (int owner = 0; owner < size; ++owner) {
    float sum = term((owner + 1) % size);
    for (int step = 1; step < size; ++step) sum += term((owner + 1 + step) % size);
    const std::int64_t count = counts[static_cast<std::size_t>(owner)];
    expected.narrow(0, begin, count).fill_(sum);
    begin += count;
  }
  communicator.all_reduce(tensor, ReduceOp::sum)->wait();
  EXPECT_TRUE(tensor.equal(expected));
}

void split_makes_working_groups(Communicator& communicator) {
  const int color = communicator.rank() % 2;
  // Reversed keys: the new order is the opposite of the old.
  const auto part = communicator.split(color, -communicator.rank());
  const int members = (communicator.size() + 1 - color) / 2;
  ASSERT_EQ(part->size(), members);
  EXPECT_EQ(part->rank(), members - 1 - communicator.rank() / 2);
  at::Tensor tensor = at::full({3}, static_cast<float>(communicator.rank()));
  part->all_reduce(tensor, ReduceOp::sum)->wait();
  float expected = 0;
  for (int rank = color; rank < communicator.size(); rank += 2) {
    expected += static_cast<float>(rank);
  }
  EXPECT_TRUE(tensor.equal(at::full({3}, expected)));
}

void bytes_sent_are_those_of_direct_algorithms(Communicator& communicator) {
  const int size = communicator.size();
  const int rank = communicator.rank();
  // In equal shares: round a ring a rank passes on the results of others.
  at::Tensor tensor = input_of(rank, 1000 * size);
  auto work = communicator.all_reduce(tensor, ReduceOp::sum);
  work->wait();
  EXPECT_EQ(work->bytes_sent(),
            direct_bytes_sent(make_all_reduce(tensor, ReduceOp::sum, size), rank, size));
  // In others only all of them together send as many bytes.
  tensor = input_of(rank, 1003);
  work = communicator.all_reduce(tensor, ReduceOp::sum);
  work->wait();
  std::int64_t by_all = 0;
  for (int peer = 0; peer < size; ++peer) {
    by_all += direct_bytes_sent(make_all_reduce(tensor, ReduceOp::sum, size), peer, size);
  }
  EXPECT_EQ(all_reduce_sum(communicator, {static_cast<double>(work->bytes_sent())}).front(),
            static_cast<double>(by_all));
  work = communicator.broadcast(tensor, 0);
  work->wait();
  EXPECT_EQ(work->bytes_sent(), direct_bytes_sent(make_broadcast(tensor, 0, size), rank, size));
  at::Tensor gathered = at::empty({5 * size});
  work = communicator.all_gather(gathered, input_of(rank, 5), {});
  work->wait();
  EXPECT_EQ(work->bytes_sent(), 4 * 5 * (size - 1));
}

void texts_travel(Communicator& communicator) {
  const auto text = [](int rank) {
    return std::string(static_cast<std::size_t>(rank * 3), 'a') + "z";
  };
  const auto all = all_gather_text(communicator, text(communicator.rank()));
  ASSERT_EQ(all.size(), static_cast<std::size_t>(communicator.size()));
  for (int rank = 0; rank < communicator.size(); ++rank) {
    EXPECT_EQ(all[static_cast<std::size_t>(rank)], text(rank));
  }
  EXPECT_EQ(broadcast_text(communicator, text(communicator.rank()), communicator.size() - 1),
            text(communicator.size() - 1));
  const auto sums = all_reduce_sum(communicator, {1.0, static_cast<double>(communicator.rank())});
  EXPECT_EQ(sums[0], communicator.size());
  EXPECT_EQ(sums[1], communicator.size() * (communicator.size() - 1) / 2);
  EXPECT_EQ(all_reduce_max(communicator, {communicator.rank()})[0], communicator.size() - 1);
}

void barrier_waits_for_all(Communicator& communicator) {
  for (int i = 0; i < 3; ++i) communicator.barrier()->wait();
}

}  // namespace thinwire::testing
