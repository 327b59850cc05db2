// What the host's kernels take, as multiples of `b += a` over the same memory on as many threads.
//   kernels [elements [rounds [threads]]]      threads: 1
//
// Rounds of all operations follow each other, so that a busy machine slows all of them; printed are
// the medians, and the medians of the ratios within a round. With several threads the second line
// of each kind of vectors is `b += a` on one.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "collectives/base/philox.h"
#include "collectives/base/team.h"
#include "collectives/compression/kernels/host.h"
#include "tests/bench/rounds.h"

namespace thinwire {
namespace {

// Memory of one bucket, and the operations on it.
class Bench {
 public:
  Bench(std::int64_t numel, const Kernels<float>& kernels, int threads)
      : numel_(numel),
        kernels_(kernels),
        team_(threads),
        on_(team_),
        gradient_(memory(numel)),
        fresh_(memory(numel)),
        residual_(memory(numel)),
        next_(memory(numel)),
        reply_(memory(numel + 1024)) {
    // Nearly normal, as gradients are.
    for (std::int64_t i = 0; i < numel; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const PhiloxBlock words = philox(1, 0, at);
      double sum = 0;
      for (const std::uint32_t word : words) sum += word * 0x1p-32 - 0.5;
      fresh_[at] = static_cast<float>(sum);
      residual_[at] = static_cast<float>((words[0] ^ words[3]) * 0x1p-32 - 0.5);
    }
    refresh();
    operations_.push_back({"b += a", [this] { add_up(&team_); }, 12});
    if (threads > 1) operations_.push_back({"b += a, one thread", [this] { add_up(nullptr); }, 12});
  }

  template <typename C>
  void add(const std::string& name, const C& options, std::int32_t size) {
    // Kept until the end, as the operations point to them.
    tables_.push_back(std::make_unique<Table>(table_of(numel_, options, size)));
    const Table& table = *tables_.back();
    // As large as values, and in huge pages as the reducer's messages are.
    payloads_.push_back(memory(numel_ + 1024));
    char* payload = reinterpret_cast<char*>(payloads_.back().get());
    const double coded = static_cast<double>(table.bytes) / static_cast<double>(numel_);
    // As the reducer has it: of signs messages are kept.
    Residual<float> residual{.error = residual_.get()};
    float* sent_next = nullptr;
    if (C::keeps_messages) {
      sent_.assign(static_cast<std::size_t>(table.count()), 0.25F);
      sent_next_ = sent_;
      residual.sent = sent_.data();
      sent_next = sent_next_.data();
    }
    operations_.push_back({name + ": encode, error feedback",
                           [=, this, &table] { encode(table, payload, residual, sent_next); },
                           12 + coded});
    operations_.push_back(
        {name + ": encode", [=, this, &table] { encode(table, payload, {}, nullptr); }, 4 + coded});
    operations_.push_back({name + ": owner reduce of 2, half",
                           [=, this, &table] {
                             kernels_.owner_reduce({.blocks = table.blocks.data(),
                                                    .block_count = table.count() / 2,
                                                    .arrived = payload,
                                                    .stride = 0,
                                                    .ranks = 2,
                                                    .residual = residual,
                                                    .owner_next = next_.get(),
                                                    .reply = reinterpret_cast<char*>(reply_.get()),
                                                    .sent_next = sent_next},
                                                   on_);
                           },
                           4 + 1.5 * coded});
    operations_.push_back({name + ": decode",
                           [=, this, &table] {
                             kernels_.decode({.blocks = table.blocks.data(),
                                              .block_count = table.count(),
                                              .payload = payload,
                                              .into = gradient_.get()},
                                             on_);
                           },
                           4 + coded});
  }

  void run(int rounds) {
    run_rounds(operations_, numel_, rounds, [this] { refresh(); });
  }

 private:
  void add_up(Team* team) {
    share_out(team, numel_, 1 << 16, [this](std::int64_t begin, std::int64_t end) {
      float* b = gradient_.get();
      const float* a = residual_.get();
      for (std::int64_t i = begin; i < end; ++i) b[i] += a[i];
    });
  }
  void refresh() { std::copy_n(fresh_.get(), numel_, gradient_.get()); }
  void encode(const Table& table, char* payload, const Residual<float>& residual,
              float* sent_next) {
    kernels_.encode({.blocks = table.blocks.data(),
                     .block_count = table.count(),
                     .gradient = gradient_.get(),
                     .residual = residual,
                     .payload = payload,
                     .rounding_key = 1,
                     .sent_next = sent_next},
                    on_);
  }

  std::int64_t numel_;
  Kernels<float> kernels_;
  Team team_;
  Executor on_;
  Memory gradient_;
  Memory fresh_;
  Memory residual_;
  Memory next_;
  Memory reply_;
  std::vector<float> sent_, sent_next_;
  std::vector<std::unique_ptr<Table>> tables_;
  std::vector<Memory> payloads_;
  std::vector<Operation> operations_;
};

void run(std::int64_t numel, int rounds, int threads) {
  for (const auto& [target, kernels] : host_kernels_by_form<float>()) {
    fmt::print("{}, {:.1f} M floats, {} rounds, {} threads\n", target,
               static_cast<double>(numel) / 1e6, rounds, threads);
    Bench bench(numel, kernels, threads);
    bench.add("sign, 1024", Sign{}, 1024);
    bench.add("4 bits, 512", Quantize{.bits = 4, .grid = Grid::symmetric}, 512);
    bench.add("4 bits, max-min, 512", Quantize{.bits = 4, .grid = Grid::max_min}, 512);
    bench.add("8 bits, 512", Quantize{.bits = 8, .grid = Grid::max_min}, 512);
    bench.add("4 bits, 512, stochastic",
              Quantize{.bits = 4, .grid = Grid::max_min, .rounding = Rounding::stochastic}, 512);
    bench.add("bf16", Cast{Half::bf16}, 1024);
    bench.add("fp16", Cast{Half::fp16}, 1024);
    bench.add("top-k 1 %, 4096", TopK{}, 4096);
    bench.add("raw", Uncompressed{}, 1024);
    bench.run(rounds);
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  thinwire::run(argc > 1 ? std::atoll(argv[1]) : 25'600'000, argc > 2 ? std::atoi(argv[2]) : 5,
                argc > 3 ? std::atoi(argv[3]) : 1);
}
