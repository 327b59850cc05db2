#include "launch/cores.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

constexpr int kMostByItself = 4;  // more threads than that wait for the same memory
constexpr int kMostOfAll = 64;
constexpr std::int64_t kLarge = 4'000'000;  // values

// "cpu.max" of a control group: "max 100000" or "150000 100000", microseconds in each period.
double quota_in(const std::string& path) {
  std::ifstream file(path);
  double time = 0;
  double period = 0;
  if (!(file >> time >> period) || period <= 0) return 0;
  return time / period;
}

// The narrowest limit of this process's control group and those above it.
double quota_of_this_process() {
  std::ifstream groups("/proc/self/cgroup");
  double least = 0;
  for (std::string line; std::getline(groups, line);) {
    if (!line.starts_with("0::")) continue;  // of version 1
    std::string group = line.substr(3);
    for (;;) {
      const double quota = quota_in("/sys/fs/cgroup" + group + "/cpu.max");
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      const auto slash = group.rfind('/');
      if (slash == std::string::npos || group.size() <= 1) break;
      group.resize(slash);
      if (group.empty()) group = "/";
    }
  }
  return least;
}

std::string line_of(const Processors& mine) {
  return fmt::format("{} {} {}", mine.allowed, mine.quota, mine.host);
}

Processors parse_line(const std::string& line) {
  Processors processors;
  std::istringstream words(line);
  words >> processors.allowed >> processors.quota >> processors.host;
  return processors;
}

bool allows(const Processors& processors, std::size_t index) {
  return index < processors.allowed.size() && processors.allowed[index] == '1';
}

}  // namespace

Processors processors_of_this_process() {
  Processors mine;
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  mine.host = host;
  // As many as a kernel may have been built for; the system refuses a set that is too small.
  for (int size = 1024; size <= 1 << 16; size *= 2) {
    cpu_set_t* const set = CPU_ALLOC(static_cast<std::size_t>(size));
    if (set == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(size));
    CPU_ZERO_S(bytes, set);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    if (known) {
      for (int i = 0; i < size; ++i) {
        if (!CPU_ISSET_S(static_cast<std::size_t>(i), bytes, set)) continue;
        mine.allowed.resize(static_cast<std::size_t>(i), '0');
        mine.allowed += '1';
      }
    }
    CPU_FREE(set);
    if (known) break;
  }
  if (mine.allowed.empty()) mine.allowed = "1";
  mine.quota = quota_of_this_process();
  return mine;
}

double share_of(const std::vector<Processors>& ranks, std::size_t rank) {
  const Processors& mine = ranks.at(rank);
  double share = 0;
  for (std::size_t i = 0; i < mine.allowed.size(); ++i) {
    if (!allows(mine, i)) continue;
    share += 1.0 / static_cast<double>(std::ranges::count_if(ranks, [&](const Processors& other) {
               return other.host == mine.host && allows(other, i);
             }));
  }
  if (mine.quota > 0) {
    const auto together = std::ranges::count(ranks, mine.host, &Processors::host);
    share = std::min(share, mine.quota / static_cast<double>(together));
  }
  return std::max(share, 1.0);
}

int exchange_threads(const std::string& words, double share, int busy, int allowed) {
  if (words == "auto") {
    // Shares are sums of fractions.
    const int left = static_cast<int>(std::floor(share + 1e-6)) - busy;
    return std::clamp(left, 1, kMostByItself);
  }
  const std::string what = "--exchange-threads";
  const auto wanted = static_cast<int>(parse_integer(what, words, 1, kMostOfAll));
  if (wanted > allowed) {
    throw UsageError(fmt::format(
        "{} is {}, but a process of this job may run on {} processors; give fewer, or let the "
        "launcher bind "
        "each rank to more of them (mpirun --map-by slot:PE={}, srun --cpus-per-task {})",
        what, wanted, allowed, wanted + 1, wanted + 1));
  }
  return wanted;
}

std::shared_ptr<Team> make_team(Communicator& communicator, const std::string& words, int busy) {
  const Processors mine = processors_of_this_process();
  std::vector<Processors> ranks;
  for (const std::string& line : all_gather_text(communicator, line_of(mine))) {
    ranks.push_back(parse_line(line));
  }
  const double share = share_of(ranks, static_cast<std::size_t>(communicator.rank()));
  // Of the rank that may use the fewest: all ranks refuse the same number, and rank 0 says so.
  std::int64_t allowed = kMostOfAll;
  for (const Processors& each : ranks) {
    allowed = std::min<std::int64_t>(allowed, std::ranges::count(each.allowed, '1'));
  }
  const int threads = exchange_threads(words, share, busy, static_cast<int>(allowed));
  return threads > 1 ? std::make_shared<Team>(threads) : nullptr;
}

ChosenKernels choose_kernels(const std::string& words, std::int64_t values) {
  if (words != "auto") return host_kernels_of_form(words);
  if (values < kLarge) return {host_kernels<float>(), {}};
  return choose_host_kernels();
}

std::string describe(const ChosenKernels& chosen) {
  std::string lines;
  for (const KernelChoice& choice : chosen.choices) {
    std::string times;
    for (const FormTime& time : choice.times) {
      times += fmt::format("{}{} {:.3f}", times.empty() ? "" : ", ", time.form, time.nanoseconds);
    }
    lines += fmt::format("{:<17} {:<24} of {} ns per value\n", choice.kernel, choice.form, times);
  }
  return lines;
}

}  // namespace thinwire
