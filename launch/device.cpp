#include "launch/device.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>

#include "collectives/base/error.h"

namespace thinwire {

Device choose_device(const std::string& word, const JobEnvironment& environment,
                     const VisibleDevices& visible, SharePolicy policy) {
  if (word != "auto" && word != "cpu" && word != "cuda") {
    throw UsageError(fmt::format("--device is '{}'; give auto, cpu or cuda", word));
  }
  if (word == "cpu" || (word == "auto" && visible.count == 0)) return {};
  if (visible.count == 0) {
    throw UsageError(
        fmt::format("--device cuda, but no CUDA device is visible{}; use --device cpu",
                    visible.limited ? ": CUDA_VISIBLE_DEVICES hides them" : " to this program"));
  }
  // Threads of one process see the same devices; processes may each see another one.
  const bool process = environment.launcher != JobEnvironment::Launcher::alone;
  if (process && visible.count == 1 && visible.limited) return {Device::Kind::cuda, 0};
  if (environment.local_size > visible.count && policy == SharePolicy::refuse) {
    throw UsageError(fmt::format(
        "{} ranks on this host, but {} CUDA device{}; start fewer, or let them share with "
        "--share-device",
        environment.local_size, visible.count, visible.count == 1 ? "" : "s"));
  }
  return {Device::Kind::cuda, environment.local_rank % visible.count};
}

std::string name(const Device& device) {
  return device.kind == Device::Kind::cpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

JobEnvironment thread_rank(int thread, int threads) {
  JobEnvironment environment;
  environment.rank = environment.local_rank = thread;
  environment.world_size = environment.local_size = threads;
  return environment;
}

void require_same_kind(Communicator& communicator, const Device& device) {
  const auto kinds =
      all_gather_text(communicator, device.kind == Device::Kind::cuda ? "cuda" : "cpu");
  if (std::adjacent_find(kinds.begin(), kinds.end(), std::not_equal_to<>()) == kinds.end()) return;
  throw AgreedError(
      ExitCode::usage,
      fmt::format("some ranks see a CUDA device and some do not: {}; repair the driver there, or "
                  "give --device cpu",
                  fmt::join(kinds, ", ")));
}

void require_own_devices(Communicator& communicator, const std::string& identity) {
  std::map<std::string, std::size_t> owner;
  const auto identities = all_gather_text(communicator, identity);
  for (std::size_t rank = 0; rank < identities.size(); ++rank) {
    if (identities[rank].empty()) continue;
    const auto [place, fresh] = owner.emplace(identities[rank], rank);
    if (fresh) continue;
    throw AgreedError(ExitCode::usage,
                      fmt::format("ranks {} and {} compute on the same device, {}; start fewer "
                                  "ranks, give each its own CUDA_VISIBLE_DEVICES, or let them "
                                  "share with --share-device",
                                  place->second, rank, identities[rank]));
  }
}

}  // namespace thinwire
