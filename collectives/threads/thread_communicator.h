// Ranks as threads of one process.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "collectives/communicator.h"

namespace thinwire {

// A wire between thread ranks that takes time: each rank sends one operation after the other, each
// for latency + bytes / bytes_per_second. Zero rate: no wire, operations take as long as they take.
struct SimulatedLink {
  std::chrono::nanoseconds latency{0};
  double bytes_per_second = 0;
};

struct ThreadGroupOptions {
  std::chrono::milliseconds timeout{60000};
  SimulatedLink link;
};

// `size` communicators of one new group, one for each rank's thread; they may outlive each other. A
// rank whose communicator is destroyed is missed at once by an operation that needs it.
std::vector<std::unique_ptr<Communicator>> make_thread_group(int size,
                                                             ThreadGroupOptions options = {});

// Runs `body` once per rank, each on a thread of its own that uses as many cores for one operation
// as the caller's (at::set_num_threads), and joins them all. The first exception (in time) aborts
// the group, so that no other rank waits for the one that failed, and is rethrown.
void run_ranks(int size, const std::function<void(std::unique_ptr<Communicator>)>& body,
               ThreadGroupOptions options = {});

}  // namespace thinwire
