// The simulator's NCCL: communicators, and how the calls of their ranks meet.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/support/simulator/devices.h"

namespace thinwire::testing {

enum class CallKind {
  all_reduce,
  reduce_scatter,
  all_gather,
  all_to_all,
  broadcast,
  reduce,
  send,
  receive,
};

// One NCCL call of one rank.
struct NcclCall {
  CallKind kind = CallKind::all_reduce;
  const void* in = nullptr;
  void* out = nullptr;
  std::size_t count = 0;  // as given to NCCL
  ncclDataType_t type = ncclFloat32;
  ncclRedOp_t op = ncclSum;
  int peer = 0;  // root, or the other side of a message
};

struct SimulatedComm;

// The calls of one rank that run as one: those between ncclGroupStart and ncclGroupEnd.
struct Fused {
  SimulatedComm* comm = nullptr;
  std::vector<NcclCall> calls;
  std::vector<std::size_t> numbers;  // of each call: which of its kind on this rank (and peer)
  bool at_head = false;
  bool met = false;  // all that it needs were at the heads of their streams; `results` is filled
  bool over = false;
  std::vector<std::pair<void*, std::vector<char>>> results;  // written when its task runs
};

struct CallRef {
  std::shared_ptr<Fused> fused;
  std::size_t index = 0;
  const NcclCall& call() const { return fused->calls[index]; }
};

struct SplitRequest {
  int color = 0;
  int key = 0;
};

// The ranks that one unique id (or one split) joins.
struct SimulatedGroup {
  explicit SimulatedGroup(int group_size)
      : size(group_size),
        comms(static_cast<std::size_t>(group_size)),
        collectives(static_cast<std::size_t>(group_size)) {}
  int size;
  std::vector<SimulatedComm*> comms;                             // null until the rank is there
  std::vector<std::vector<CallRef>> collectives;                 // per rank, in order
  std::map<std::pair<int, int>, std::vector<CallRef>> sent;      // (from, to)
  std::map<std::pair<int, int>, std::vector<CallRef>> received;  // (from, to)
  int finalizing = 0;
  std::vector<std::map<int, SplitRequest>> splits;  // by number: per rank
  std::map<std::pair<std::size_t, int>, std::shared_ptr<SimulatedGroup>>
      children;  // (number, color)
};

// What a communicator is busy with while it says ncclInProgress.
struct Busy {
  std::uint64_t polls = 0;
  std::function<bool()> ready;  // empty: yes
  std::function<void()> effect;
};

struct SimulatedComm {
  std::shared_ptr<SimulatedGroup> group;
  int rank = 0;
  int device = 0;
  std::optional<Busy> busy;
  ncclResult_t error = ncclSuccess;
  std::size_t splits = 0;
  int running = 0;  // tasks on streams
  bool finalized = false;
  bool destroyed = false;
  bool aborted = false;
};

// All NCCL state. Everything needs the mutex of the devices.
class Network {
 public:
  explicit Network(Devices& devices) : devices_(devices) {}

  ncclUniqueId unique_id();
  ncclResult_t init(ncclComm_t* comm, int size, const ncclUniqueId& id, int rank,
                    const ncclConfig_t* config);
  ncclResult_t split(ncclComm_t comm, int color, int key, ncclComm_t* made);
  // The communicator behind the handle. Null, and a failure, where it is gone or busy.
  SimulatedComm* idle(ncclComm_t comm, const char* caller);
  ncclResult_t async_error(ncclComm_t comm, ncclResult_t* state);
  ncclResult_t finalize(ncclComm_t comm);
  ncclResult_t destroy(ncclComm_t comm);
  ncclResult_t abort(ncclComm_t comm);
  // Several calls as one kernel.
  ncclResult_t issue(SimulatedComm& comm, std::vector<NcclCall> calls, cudaStream_t stream);

  void break_device(int device, ncclResult_t error);
  std::vector<std::string> leaks() const;

  std::map<int, ncclResult_t> refused;        // communicators, per device
  std::map<int, ncclResult_t> refused_calls;  // per device
  bool one_kernel_at_a_time = false;

 private:
  SimulatedComm* living(ncclComm_t comm, const char* caller);
  ncclResult_t work(SimulatedComm& comm, Busy busy);
  void enqueue(SimulatedComm& comm, std::vector<NcclCall> calls, SimulatedStream& stream);
  bool ready(const std::shared_ptr<Fused>& fused);
  bool meet(const std::shared_ptr<Fused>& fused);
  bool is_first_on_device(const Fused& fused);
  void carry_out(SimulatedGroup& group, std::size_t number);
  void deliver(const CallRef& from, const CallRef& to);
  std::shared_ptr<SimulatedGroup> child_of(SimulatedGroup& group, std::size_t number, int color);

  Devices& devices_;
  std::map<std::string, std::shared_ptr<SimulatedGroup>> groups_;
  std::vector<std::unique_ptr<SimulatedComm>> comms_;  // for ever, so that misuse is noticed
  int ids_ = 0;
  std::map<int, std::deque<std::shared_ptr<Fused>>> enqueued_;  // per device: not over yet
};

}  // namespace thinwire::testing
