// Does communication hide behind backward? Two ranks as threads, joined by a simulated wire whose
// speed is set so that communication takes .5, 1 and 2 times as long as backward. For each, medians
// of interleaved runs of: backward alone (no data parallelism), communication alone (the same
// buckets, no backward), and both, from the start of backward to the end of finish().
//
//   build/tests/bench/overlap [none|sign]
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>

#include "collectives/threads/thread_communicator.h"
#include "runtime/data_parallel.h"

namespace thinwire {
namespace {

constexpr int kRepeats = 15;
constexpr int kRanks = 2;
constexpr std::int64_t kWidth = 1024;

torch::nn::Sequential make_model() {
  torch::nn::Sequential model;
  for (int i = 0; i < 8; ++i) {
    model->push_back(torch::nn::Linear(kWidth, kWidth));
    model->push_back(torch::nn::Tanh());
  }
  return model;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

struct Times {
  double backward = 0;
  double communication = 0;
  double both = 0;
};

// Seconds, medians over repeats, of rank 0. Ranks start each run together.
Times measure(const CompressionOptions& compression, double bytes_per_second) {
  Times result;
  run_ranks(
      kRanks,
      [&](auto ranks) {
        auto alone = make_model();
        auto attached = make_model();
        DataParallel parallel(*attached, *ranks, compression,
                              {.bucket_bytes = 1 << 20, .first_bucket_bytes = 1 << 18});
        const at::Tensor input = torch::randn({256, kWidth});
        std::vector<double> times[3];
        for (int repeat = 0; repeat < kRepeats; ++repeat) {
          for (int kind = 0; kind < 3; ++kind) {
            torch::nn::Sequential& model = kind == 0 ? alone : attached;
            at::Tensor loss;
            if (kind != 1) loss = model->forward(input).square().mean();
            ranks->barrier()->wait();
            const auto start = Clock::now();
            if (kind != 1) loss.backward();
            if (kind != 0) parallel.finish();
            times[kind].push_back(std::chrono::duration<double>(Clock::now() - start).count());
          }
        }
        if (ranks->rank() != 0) return;
        result = {median(times[0]), median(times[1]), median(times[2])};
      },
      {.timeout = std::chrono::seconds(60),
       .link = {.latency = {}, .bytes_per_second = bytes_per_second}});
  return result;
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  using namespace thinwire;
  at::set_num_threads(1);
  CompressionOptions compression;
  const bool sign = argc > 1 && std::string(argv[1]) == "sign";
  if (sign) compression.codec = Sign{};
  const Times free = measure(compression, 0);
  const double bytes = ring_bytes(8.0 * (kWidth * kWidth + kWidth) * 4 / (sign ? 31 : 1), kRanks);
  fmt::print("{} ranks, 8 layers of {} x {}, {}; wait mode: condition variable, no spinning\n",
             kRanks, kWidth, kWidth, sign ? "sign" : "dense");
  fmt::print("{:>10} {:>14} {:>18} {:>10} {:>22}\n", "wire MB/s", "backward ms", "communication ms",
             "both ms", "both / longer of two");
  fmt::print("{:>10} {:>14.1f} {:>18.1f} {:>10.1f} {:>22.2f}\n", "no wire", 1e3 * free.backward,
             1e3 * free.communication, 1e3 * free.both,
             free.both / std::max(free.backward, free.communication));
  for (const double share : {0.5, 1.0, 2.0}) {
    const double rate = bytes / (share * free.backward);
    const Times times = measure(compression, rate);
    fmt::print("{:>10.0f} {:>14.1f} {:>18.1f} {:>10.1f} {:>22.2f}\n", rate / 1e6,
               1e3 * times.backward, 1e3 * times.communication, 1e3 * times.both,
               times.both / std::max(times.backward, times.communication));
  }
}
