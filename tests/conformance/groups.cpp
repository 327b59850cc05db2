#include "tests/conformance/groups.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/operation.h"

namespace thinwire::testing {
namespace {

using namespace std::chrono_literals;

using Body = std::function<void(Communicator&)>;

void contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << text << "' has no '" << part << "'";
}

// The sentence with which `body` ends in `Lost`.
template <typename Lost>
std::string ends_with(const std::function<void()>& body) {
  const auto start = Clock::now();
  std::string sentence;
  try {
    body();
    ADD_FAILURE() << "it went well";
  } catch (const Lost& error) {
    sentence = error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
  }
  EXPECT_LT(Clock::now() - start, 20s);
  return sentence;
}

at::Tensor numbers(std::int64_t count, int factor) {
  return at::arange(count).remainder(100).mul(factor).to(at::kFloat);
}

void sum(Communicator& communicator, std::int64_t count) {
  at::Tensor tensor = numbers(count, communicator.rank() + 1);
  communicator.all_reduce(tensor, ReduceOp::sum)->wait();
  const int size = communicator.size();
  EXPECT_TRUE(tensor.equal(numbers(count, size * (size + 1) / 2))) << count;
}

struct Call {
  const char* what;  // as messages have it
  Body run;
};

// One call of each operation.
const Call kCalls[] = {
    {"all_reduce of 1000 Float",
     [](Communicator& c) { c.all_reduce(at::zeros({1000}), ReduceOp::sum)->wait(); }},
    {"all_reduce of 3000000 Float",
     [](Communicator& c) { c.all_reduce(at::zeros({3000000}), ReduceOp::sum)->wait(); }},
    {"reduce_scatter of ",
     [](Communicator& c) {
       c.reduce_scatter(at::zeros({5}), at::zeros({5 * c.size()}), ReduceOp::sum, {})->wait();
     }},
    {"all_gather of 5 Float",
     [](Communicator& c) { c.all_gather(at::zeros({5 * c.size()}), at::zeros({5}), {})->wait(); }},
    {"all_to_all of ",
     [](Communicator& c) {
       c.all_to_all(at::zeros({2 * c.size()}), at::zeros({2 * c.size()}), {}, {})->wait();
     }},
    {"broadcast of 1000 Float",
     [](Communicator& c) { c.broadcast(at::zeros({1000}), c.size() - 1)->wait(); }},
    {"barrier", [](Communicator& c) { c.barrier()->wait(); }},
    {"barrier", [](Communicator& c) { c.split(0, 0); }},
};

}  // namespace

void a_rank_that_left_is_missed_at_once(Communicator& communicator) {
  if (communicator.size() < 2) return;
  const int leaver = communicator.size() - 1;
  for (const Call& call : kCalls) {
    auto part = communicator.split(0, 0);
    sum(*part, 100);
    if (communicator.rank() == leaver) {
      part.reset();
    } else {
      const std::string sentence = ends_with<PeerLost>([&] { call.run(*part); });
      contains(sentence, "rank " + std::to_string(leaver) + " left the group before ");
      if (std::string(call.what) != "barrier") contains(sentence, call.what);
      contains(sentence, ", which the others are in");
      EXPECT_THROW(part->barrier(), PeerLost);
    }
    sum(communicator, 100);
  }
}

void what_a_leaver_took_part_in_completes(Communicator& communicator) {
  for (const std::int64_t count : {1, 1000, 300000}) {
    auto part = communicator.split(0, 0);
    const int size = part->size();
    std::vector<at::Tensor> tensors;
    std::vector<std::unique_ptr<Work>> works;
    for (int i = 0; i < 4; ++i) {
      tensors.push_back(numbers(count + i, part->rank() + 1));
      works.push_back(part->all_reduce(tensors.back(), ReduceOp::sum));
    }
    // Some communicators go before their operations have ended.
    if (part->rank() % 2 == 1) part.reset();
    for (int i = 0; i < 4; ++i) {
      works[static_cast<std::size_t>(i)]->wait();
      EXPECT_TRUE(
          tensors[static_cast<std::size_t>(i)].equal(numbers(count + i, size * (size + 1) / 2)));
      if (communicator.rank() == 0) std::this_thread::sleep_for(2ms);
    }
    works.clear();
    part.reset();
  }
  sum(communicator, 10);
}

void many_groups_come_and_go(Communicator& communicator) {
  std::vector<std::unique_ptr<Communicator>> kept;
  for (int round = 0; round < 40; ++round) {
    auto part = communicator.split(communicator.rank() % 2, 0);
    sum(*part, 20 + round);
    // Each rank lets go of its groups at other times.
    if ((round + communicator.rank()) % 3 == 0) kept.push_back(std::move(part));
    if ((round + communicator.rank()) % 20 == 0) kept.clear();
  }
  sum(communicator, 10);
}

void two_groups_are_used_by_two_threads(Communicator& communicator) {
  // The whole and a part, then two parts.
  const auto first = communicator.split(0, 0);
  const auto second = communicator.split(0, -communicator.rank());
  const auto use = [&](Communicator& group, unsigned seed) {
    // What is called is the same on all ranks, when is not.
    std::mt19937 calls(seed);
    std::mt19937 pauses(1000 * seed + static_cast<unsigned>(communicator.rank()));
    for (int round = 0; round < 250; ++round) {
      const std::int64_t count = calls() % 50 == 0 ? 200000 + calls() % 1000 : calls() % 300;
      if (pauses() % 4 == 0) std::this_thread::yield();
      if (pauses() % 100 == 0) std::this_thread::sleep_for(1ms);
      if (calls() % 10 == 0) {
        group.barrier()->wait();
      } else {
        sum(group, count);
      }
    }
  };
  for (Communicator* one : {&communicator, first.get()}) {
    std::thread other([&] { use(*second, 2); });
    use(*one, 1);
    other.join();
  }
}

void operations_of_two_groups_start_in_any_order(Communicator& communicator) {
  const auto first = communicator.split(0, 0);
  const auto second = first->split(0, 0);
  std::mt19937 random(static_cast<unsigned>(communicator.rank()));
  const int size = communicator.size();
  for (int round = 0; round < 300; ++round) {
    const std::int64_t count = round % 100 == 0 ? 100000 : 50;
    at::Tensor a = numbers(count, communicator.rank() + 1);
    at::Tensor b = numbers(count, communicator.rank() + 1);
    std::unique_ptr<Work> on_first;
    std::unique_ptr<Work> on_second;
    if (random() % 2 == 0) {
      on_first = first->all_reduce(a, ReduceOp::sum);
      on_second = second->all_reduce(b, ReduceOp::max);
    } else {
      on_second = second->all_reduce(b, ReduceOp::max);
      on_first = first->all_reduce(a, ReduceOp::sum);
    }
    on_first->wait();
    on_second->wait();
    ASSERT_TRUE(a.equal(numbers(count, size * (size + 1) / 2))) << round;
    ASSERT_TRUE(b.equal(numbers(count, size))) << round;
  }
}

void abort_of_a_part_leaves_the_whole(Communicator& communicator) {
  if (communicator.size() < 2) return;
  const auto whole = communicator.split(0, 0);
  const auto part = whole->split(0, 0);
  if (communicator.rank() == 0) {
    std::this_thread::sleep_for(20ms);
    part->abort("rank 0 gave the part up");
  } else {
    EXPECT_EQ(ends_with<PeerLost>([&] { part->barrier()->wait(); }), "rank 0 gave the part up");
  }
  sum(*whole, 1000);
  EXPECT_THROW(part->barrier(), PeerLost);
  sum(*whole, 1000);
}

void abort_of_the_whole_ends_its_parts(Communicator& communicator) {
  if (communicator.size() < 2) return;
  const auto whole = communicator.split(0, 0);
  const auto part = whole->split(0, 0);
  const auto part_of_part = part->split(communicator.rank() % 2, 0);
  // With four ranks some parts are without the rank that aborts.
  const bool waits = communicator.rank() >= 2 || communicator.size() < 4;
  Communicator& group = communicator.size() < 4 ? *part : *part_of_part;
  if (communicator.rank() == 0) {
    std::this_thread::sleep_for(20ms);
    whole->abort("rank 0 gave up");
  } else if (waits) {
    // Nobody gets through: rank 0, or rank 1, does not call.
    const std::string sentence = ends_with<PeerLost>([&] {
      at::Tensor tensor = at::zeros({1000});
      group.all_reduce(tensor, ReduceOp::sum)->wait();
      group.barrier()->wait();
    });
    contains(sentence, "gave up");
  } else {
    EXPECT_EQ(ends_with<PeerLost>([&] { whole->barrier()->wait(); }), "rank 0 gave up");
  }
  EXPECT_THROW(part_of_part->barrier(), PeerLost);
  sum(communicator, 10);
}

void ranks_that_call_different_operations_are_told(Communicator& communicator) {
  if (communicator.size() < 2) return;
  const auto reduce = [](std::int64_t count, at::ScalarType dtype, ReduceOp op) {
    return [=](Communicator& c) { c.all_reduce(at::zeros({count}, dtype), op)->wait(); };
  };
  const Body broadcast = [](Communicator& c) { c.broadcast(at::zeros({4}), 0)->wait(); };
  const Body barrier = [](Communicator& c) { c.barrier()->wait(); };
  const auto gather = [](std::int64_t count) {
    return [=](Communicator& c) {
      c.all_gather(at::zeros({count * c.size()}), at::zeros({count}), {})->wait();
    };
  };
  const auto exchange = [](std::int64_t count) {
    return [=](Communicator& c) {
      c.all_to_all(at::zeros({count * c.size()}), at::zeros({count * c.size()}), {}, {})->wait();
    };
  };
  struct Pair {
    const char* what;
    Body of_rank_0;
    Body of_the_others;
  };
  const Pair pairs[] = {
      {"size", reduce(4, at::kFloat, ReduceOp::sum), reduce(5, at::kFloat, ReduceOp::sum)},
      {"large size", reduce(1000000, at::kFloat, ReduceOp::sum),
       reduce(1000001, at::kFloat, ReduceOp::sum)},
      {"small and large", reduce(4, at::kFloat, ReduceOp::sum),
       reduce(3000000, at::kFloat, ReduceOp::sum)},
      {"nothing and something", reduce(0, at::kFloat, ReduceOp::sum),
       reduce(8, at::kFloat, ReduceOp::sum)},
      {"dtype", reduce(4, at::kFloat, ReduceOp::sum), reduce(4, at::kInt, ReduceOp::sum)},
      {"reduction", reduce(4, at::kFloat, ReduceOp::sum), reduce(4, at::kFloat, ReduceOp::max)},
      {"operation", reduce(4, at::kFloat, ReduceOp::sum), broadcast},
      {"operation, the other way round", broadcast, reduce(4, at::kFloat, ReduceOp::sum)},
      {"barrier", barrier, reduce(4, at::kFloat, ReduceOp::sum)},
      {"gathered sizes", gather(3), gather(4)},
      {"exchanged sizes", exchange(3), exchange(4)},
      {"kind of exchange", exchange(3), gather(3)},
  };
  for (const Pair& pair : pairs) {
    auto part = communicator.split(0, 0);
    sum(*part, 10);
    // An operation that needs nothing from others may end well on this rank; the next cannot.
    const std::string sentence = ends_with<RanksDisagree>([&] {
      (communicator.rank() == 0 ? pair.of_rank_0 : pair.of_the_others)(*part);
      part->barrier()->wait();
    });
    contains(sentence, "every rank must call the same operations in the same order");
    EXPECT_FALSE(::testing::Test::HasFailure()) << pair.what << ": " << sentence;
    part.reset();
    sum(communicator, 10);
  }
}

}  // namespace thinwire::testing
