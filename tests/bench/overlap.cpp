// Does communication hide behind backward? Medians of interleaved runs of: backward alone (no data
// parallelism), communication alone (the same buckets, no backward), and both, from the start of
// backward to the end of finish().
//
//   build/tests/bench/overlap [none|sign]
//   mpirun -np 4 build/tests/bench/overlap [none|sign] mpi
//
// The first with two ranks as threads, joined by a simulated wire whose speed is set so that
// communication takes .5, 1 and 2 times as long as backward. The second over the network that there
// is: in the network lab (tests/bench/overlap.sh lab).
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>

#include "collectives/threads/thread_communicator.h"
#include "runtime/data_parallel.h"

#if THINWIRE_HAVE_MPI
#include "collectives/mpi/mpi_communicator.h"
#endif

namespace thinwire {
namespace {

constexpr int kRepeats = 15;
constexpr int kRepeatsOverMpi = 5;  // these take seconds each
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

// Seconds, medians over repeats, of this rank. Ranks start each run together.
Times measure_rank(Communicator& ranks, const CompressionOptions& compression, int repeats) {
  auto alone = make_model();
  auto attached = make_model();
  DataParallel parallel(*attached, ranks, compression,
                        {.bucket_bytes = 1 << 20, .first_bucket_bytes = 1 << 18});
  const at::Tensor input = torch::randn({256, kWidth});
  std::vector<double> times[3];
  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (int kind = 0; kind < 3; ++kind) {
      torch::nn::Sequential& model = kind == 0 ? alone : attached;
      at::Tensor loss;
      if (kind != 1) loss = model->forward(input).square().mean();
      ranks.barrier()->wait();
      const auto start = Clock::now();
      if (kind != 1) loss.backward();
      if (kind != 0) parallel.finish();
      times[kind].push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
  }
  return {median(times[0]), median(times[1]), median(times[2])};
}

Times measure(const CompressionOptions& compression, double bytes_per_second) {
  Times result;
  run_ranks(kRanks,
            [&](auto ranks) {
              const Times mine = measure_rank(*ranks, compression, kRepeats);
              if (ranks->rank() == 0) result = mine;
            },
            {.timeout = std::chrono::seconds(60),
             .link = {.latency = {}, .bytes_per_second = bytes_per_second}});
  return result;
}

void print_head(int ranks, const char* coding, const char* wait_mode) {
  fmt::print("{} ranks, 8 layers of {} x {}, {}; wait mode: {}\n", ranks, kWidth, kWidth, coding,
             wait_mode);
  fmt::print("{:>10} {:>14} {:>18} {:>10} {:>22}\n", "wire MB/s", "backward ms", "communication ms",
             "both ms", "both / longer of two");
}

void print_row(const std::string& wire, const Times& times) {
  fmt::print("{:>10} {:>14.1f} {:>18.1f} {:>10.1f} {:>22.2f}\n", wire, 1e3 * times.backward,
             1e3 * times.communication, 1e3 * times.both,
             times.both / std::max(times.backward, times.communication));
}

void over_threads(const CompressionOptions& compression, const char* coding, double bytes) {
  const Times free = measure(compression, 0);
  print_head(kRanks, coding, "condition variable, no spinning");
  print_row("no wire", free);
  for (const double share : {0.5, 1.0, 2.0}) {
    const double rate = ring_bytes(bytes, kRanks) / (share * free.backward);
    print_row(fmt::format("{:.0f}", rate / 1e6), measure(compression, rate));
  }
}

#if THINWIRE_HAVE_MPI
void over_mpi(const CompressionOptions& compression, const char* coding, double bytes) {
  MpiEnvironment mpi;
  const auto ranks = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = std::chrono::minutes(5)});
  const Times mine = measure_rank(*ranks, compression, kRepeatsOverMpi);
  // The slowest rank's: everybody waits for it in the next step.
  const auto slowest = all_reduce_max(*ranks, {static_cast<std::int64_t>(1e9 * mine.backward),
                                               static_cast<std::int64_t>(1e9 * mine.communication),
                                               static_cast<std::int64_t>(1e9 * mine.both)});
  const auto seconds = [&](std::size_t i) { return 1e-9 * static_cast<double>(slowest[i]); };
  const Times times{seconds(0), seconds(1), seconds(2)};
  if (ranks->rank() != 0) return;
  print_head(ranks->size(), coding, "MPI_Testsome with yields, then sleeps of up to 200 us");
  print_row(fmt::format("{:.0f}", ring_bytes(bytes, ranks->size()) / times.communication / 1e6),
            times);
}
#endif

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  using namespace thinwire;
  at::set_num_threads(1);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto asked = [&](const char* word) {
    return std::find(arguments.begin(), arguments.end(), word) != arguments.end();
  };
  CompressionOptions compression;
  if (asked("sign")) compression.codec = Sign{};
  const char* coding = asked("sign") ? "sign" : "dense";
  const double bytes = 8.0 * (kWidth * kWidth + kWidth) * 4 / (asked("sign") ? 31 : 1);
  if (!asked("mpi")) {
    over_threads(compression, coding, bytes);
    return 0;
  }
#if THINWIRE_HAVE_MPI
  over_mpi(compression, coding, bytes);
  return 0;
#else
  fmt::print(stderr, "overlap: built without MPI; rebuild with -DTHINWIRE_MPI=ON\n");
  return 2;
#endif
}
