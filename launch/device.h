// Where a rank computes.
#pragma once

#include <string>

#include "collectives/communicator.h"
#include "launch/environment.h"

namespace thinwire {

// May ranks of a host compute on the same device?
enum class SharePolicy { refuse, share };

// The CUDA devices that this process sees.
struct VisibleDevices {
  int count = 0;
  bool limited = false;  // CUDA_VISIBLE_DEVICES is set: another process may see other devices
};

// One rank's device: its index among those that this process sees.
struct Device {
  enum class Kind { cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

// What --device `word` means for this rank: "cpu", "cuda" (its local rank is the index), or "auto",
// which is cuda where there is a device and else cpu.
//
// A process that sees exactly one device because CUDA_VISIBLE_DEVICES is set takes that one,
// whatever its local rank is: this is how launchers give each process a device of its own, and
// `require_own_devices` checks that they did. Otherwise, where there are more local ranks than
// devices, it throws `UsageError`, or with `SharePolicy::share` deals the devices out in turn.
// "cuda" where there is no device is a `UsageError` too.
Device choose_device(const std::string& word, const JobEnvironment& environment,
                     const VisibleDevices& visible, SharePolicy policy);

// "cpu" or "cuda:1".
std::string name(const Device& device);

// The environment of rank `thread` of `threads` that share this process: as if each had a process.
JobEnvironment thread_rank(int thread, int threads);

// Collective. Throws the same `AgreedError` on every rank if some ranks compute on a CPU and some
// on a device.
void require_same_kind(Communicator& communicator, const Device& device);

// Collective. `identity` names this rank's device among those of the whole job, e.g. by host and
// UUID; it is empty on a CPU. Throws the same `AgreedError` on every rank if two ranks have the
// same device.
void require_own_devices(Communicator& communicator, const std::string& identity);

}  // namespace thinwire
