#include "tests/collectives/nccl_scenario.h"

#include <ATen/ops/full.h>
#include <fmt/format.h>

#include <array>
#include <atomic>
#include <mutex>

#include "tests/support/simulator/ranks.h"

namespace thinwire::testing {
namespace {

constexpr int kSteps = 3;
constexpr std::int64_t kCount = 24;

// Elements that a rank sends to rank 0 and 1, and gets from them.
Counts messages(int rank) {
  return {1 + rank, 2 + rank};
}

float value(int rank, int step, std::int64_t index) {
  return static_cast<float>(100 * step + 10 * rank + index % 7);
}

// The memory of one rank's device and what it has read from it. Outlives the threads: what is left
// in a stream may still write here.
struct Buffers {
  at::Tensor gradient = at::full({kCount}, -1.0f);
  at::Tensor gathered = at::full({64}, -1.0f);
  at::Tensor exchanged = at::full({64}, -1.0f);
  at::Tensor sums = at::full({kSteps, kCount}, -1.0f);
  at::Tensor gathers = at::full({kSteps, 64}, -1.0f);
  at::Tensor exchanges = at::full({kSteps, 64}, -1.0f);
  std::array<std::atomic<bool>, kSteps> reached{};
};

Range range(const at::Tensor& tensor) {
  return {tensor.data_ptr(), tensor.nbytes()};
}

// The oracle: empty if the rank has read what a step must give.
std::string compare(const Buffers& mine, int rank, int step) {
  const auto row = [&](const at::Tensor& results) {
    return results.data_ptr<float>() + step * results.size(1);
  };
  const auto differs = [&](const char* what, std::int64_t index, float got, float expected) {
    return fmt::format("rank {}, step {}: {}[{}] is {}, not {}", rank, step, what, index, got,
                       expected);
  };
  for (std::int64_t i = 0; i < kCount; ++i) {
    const float sum = value(0, step, i) + value(1, step, i);
    if (row(mine.sums)[i] != sum) return differs("sum", i, row(mine.sums)[i], sum);
  }
  for (std::int64_t i = 0; i < 11; ++i) {
    const float expected = i < 5 ? value(0, step, i) : value(1, step, i - 5);
    if (row(mine.gathers)[i] != expected) {
      return differs("gathered", i, row(mine.gathers)[i], expected);
    }
  }
  std::int64_t place = 0;
  for (int peer = 0; peer < 2; ++peer) {
    const std::int64_t from = rank == 0 ? 0 : messages(peer)[0];
    for (std::int64_t i = 0; i < messages(rank)[static_cast<std::size_t>(peer)]; ++i, ++place) {
      const float got = row(mine.exchanges)[place];
      const float expected = value(peer, step, from + i);
      if (got != expected) return differs("exchanged", place, got, expected);
    }
  }
  return {};
}

}  // namespace

ScenarioResult nccl_scenario(std::uint64_t seed, const std::optional<WaitSite>& ignored) {
  constexpr int kSize = 2;
  std::array<Buffers, kSize> buffers;
  Simulator simulator({.devices = kSize, .seed = seed});
  if (ignored) simulator.ignore_wait(*ignored);
  ScenarioResult result;
  std::mutex mutex;
  const auto expect = [&](bool holds, const std::string& what) {
    const std::lock_guard lock(mutex);
    if (!holds) result.problems.push_back(what);
  };

  const auto errors = run_on_devices(simulator, kSize, {}, [&](const DeviceRank& self) {
    Buffers& mine = buffers[static_cast<std::size_t>(self.rank())];
    const auto copy = [&](const at::Tensor& from, const at::Tensor& to) {
      self.simulator.enqueue_kernel(
          self.stream,
          [from, to] { std::copy_n(from.data_ptr<float>(), from.numel(), to.data_ptr<float>()); },
          {range(from)}, {range(to)});
    };
    for (int step = 0; step < kSteps; ++step) {
      self.simulator.enqueue_kernel(self.stream,
                                    [&mine, step, rank = self.rank()] {
                                      for (std::int64_t i = 0; i < kCount; ++i) {
                                        mine.gradient.data_ptr<float>()[i] = value(rank, step, i);
                                      }
                                    },
                                    {}, {range(mine.gradient)});
      const at::Tensor part = mine.gradient.narrow(0, 0, 5 + self.rank());
      auto gather = self.communicator.all_gather(mine.gathered.narrow(0, 0, 11), part, {5, 6});
      const std::int64_t exchanged = 3 + 2 * self.rank();
      auto exchange = self.communicator.all_to_all(mine.exchanged.narrow(0, 0, exchanged),
                                                   mine.gradient.narrow(0, 0, exchanged),
                                                   messages(self.rank()), messages(self.rank()));
      gather->wait();
      exchange->wait();
      auto sum = self.communicator.all_reduce(mine.gradient, ReduceOp::sum);
      copy(mine.gathered, mine.gathers.select(0, step));
      copy(mine.exchanged, mine.exchanges.select(0, step));
      sum->wait();
      copy(mine.gradient, mine.sums.select(0, step));
      self.simulator.enqueue_kernel(
          self.stream, [&mine, step] { mine.reached[static_cast<std::size_t>(step)].store(true); },
          {}, {});
      self.communicator.barrier()->wait();
      for (const Buffers& peer : buffers) {
        expect(peer.reached[static_cast<std::size_t>(step)].load(),
               fmt::format("rank {} left barrier {} too early", self.rank(), step));
      }
    }
    Event verdict(self.simulator.cuda());
    verdict.record(self.stream);
    self.communicator.host_wait(verdict, "the verdict", Clock::now() + std::chrono::minutes(1));
    for (int step = 0; step < kSteps; ++step) {
      const std::string problem = compare(mine, self.rank(), step);
      expect(problem.empty(), problem);
    }
  });
  for (const std::string& error : errors) expect(error.empty(), error);
  for (const std::string& failure : simulator.failures()) expect(false, failure);
  for (const std::string& leak : simulator.leaks()) expect(false, "never freed: " + leak);
  result.sites = simulator.wait_sites();
  return result;
}

}  // namespace thinwire::testing
