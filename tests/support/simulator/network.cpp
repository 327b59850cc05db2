#include "tests/support/simulator/network.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "collectives/operation.h"

namespace thinwire::testing {
namespace {

const char* name(CallKind kind) {
  switch (kind) {
    case CallKind::all_reduce:
      return "all_reduce";
    case CallKind::reduce_scatter:
      return "reduce_scatter";
    case CallKind::all_gather:
      return "all_gather";
    case CallKind::all_to_all:
      return "all_to_all";
    case CallKind::broadcast:
      return "broadcast";
    case CallKind::reduce:
      return "reduce";
    case CallKind::send:
      return "send";
    case CallKind::receive:
      return "receive";
  }
  return "?";
}

at::ScalarType scalar_type(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
      return at::kChar;
    case ncclInt32:
      return at::kInt;
    case ncclInt64:
      return at::kLong;
    case ncclFloat32:
      return at::kFloat;
    case ncclFloat64:
      return at::kDouble;
    default:
      return at::kByte;
  }
}

std::size_t width(ncclDataType_t type) {
  return c10::elementSize(scalar_type(type));
}

ReduceOp reduce_op(ncclRedOp_t op) {
  if (op == ncclMin) return ReduceOp::min;
  if (op == ncclMax) return ReduceOp::max;
  return ReduceOp::sum;
}

bool has_root(CallKind kind) {
  return kind == CallKind::broadcast || kind == CallKind::reduce;
}

std::string describe(const NcclCall& call) {
  return fmt::format("{} of {} elements of type {}, op {}{}", name(call.kind), call.count,
                     static_cast<int>(call.type), static_cast<int>(call.op),
                     has_root(call.kind) ? fmt::format(", root {}", call.peer) : "");
}

Range input_of(const NcclCall& call, int rank, int size) {
  const std::size_t bytes = call.count * width(call.type);
  switch (call.kind) {
    case CallKind::reduce_scatter:
    case CallKind::all_to_all:
      return {call.in, bytes * static_cast<std::size_t>(size)};
    case CallKind::broadcast:
      return {call.in, rank == call.peer ? bytes : 0};
    case CallKind::receive:
      return {};
    default:
      return {call.in, bytes};
  }
}

Range output_of(const NcclCall& call, int rank, int size) {
  const std::size_t bytes = call.count * width(call.type);
  switch (call.kind) {
    case CallKind::all_gather:
    case CallKind::all_to_all:
      return {call.out, bytes * static_cast<std::size_t>(size)};
    case CallKind::reduce:
      return {call.out, rank == call.peer ? bytes : 0};
    case CallKind::send:
      return {};
    default:
      return {call.out, bytes};
  }
}

std::vector<char> bytes_at(const void* data, std::size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  return {from, from + bytes};
}

}  // namespace

ncclUniqueId Network::unique_id() {
  ncclUniqueId id{};
  fmt::format_to_n(static_cast<char*>(id.internal), sizeof id.internal - 1, "simulated id {}",
                   ids_++);
  return id;
}

SimulatedComm* Network::living(ncclComm_t handle, const char* caller) {
  auto* comm = reinterpret_cast<SimulatedComm*>(handle);
  const bool known = std::any_of(comms_.begin(), comms_.end(),
                                 [&](const auto& made) { return made.get() == comm; });
  if (known && !comm->destroyed && !comm->aborted) return comm;
  devices_.fail(fmt::format("{} on a communicator that does not exist (any more)", caller));
  return nullptr;
}

SimulatedComm* Network::idle(ncclComm_t handle, const char* caller) {
  SimulatedComm* comm = living(handle, caller);
  if (comm == nullptr || !comm->busy) return comm;
  devices_.fail(fmt::format("{} while the communicator was in progress", caller));
  return nullptr;
}

ncclResult_t Network::work(SimulatedComm& comm, Busy busy) {
  if (comm.error != ncclSuccess) return comm.error;
  devices_.progress();
  if (devices_.draw(2) == 0 && (!busy.ready || busy.ready())) {
    busy.effect();
    return ncclSuccess;
  }
  busy.polls = devices_.draw(3);
  comm.busy = std::move(busy);
  return ncclInProgress;
}

ncclResult_t Network::async_error(ncclComm_t handle, ncclResult_t* state) {
  SimulatedComm* comm = living(handle, "ncclCommGetAsyncError");
  if (comm == nullptr) return ncclInvalidArgument;
  devices_.run_some();
  if (comm->error == ncclSuccess && comm->busy) {
    if (comm->busy->polls > 0) {
      --comm->busy->polls;
    } else if (!comm->busy->ready || comm->busy->ready()) {
      const Busy busy = *std::exchange(comm->busy, std::nullopt);
      busy.effect();
      devices_.progress();
    }
  }
  *state = comm->error != ncclSuccess ? comm->error : comm->busy ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t Network::init(ncclComm_t* made, int size, const ncclUniqueId& id, int rank,
                           const ncclConfig_t* config) {
  *made = nullptr;
  const int device = devices_.device();
  if (device < 0) return ncclUnhandledCudaError;
  if (refused.count(device) > 0) return refused[device];
  if (config == nullptr || config->blocking != 0) {
    devices_.fail("a blocking communicator cannot be aborted by who waits for it");
    return ncclInvalidUsage;
  }
  auto& group = groups_[{id.internal, sizeof id.internal}];
  if (!group) group = std::make_shared<SimulatedGroup>(size);
  const auto place = static_cast<std::size_t>(rank);
  if (group->size != size || rank < 0 || rank >= size || group->comms[place] != nullptr) {
    devices_.fail(fmt::format("rank {} of {} joined a group of {} twice, or does not fit", rank,
                              size, group->size));
    return ncclInvalidArgument;
  }
  comms_.push_back(std::make_unique<SimulatedComm>());
  SimulatedComm* comm = comms_.back().get();
  comm->group = group;
  comm->rank = rank;
  comm->device = device;
  group->comms[place] = comm;
  *made = reinterpret_cast<ncclComm_t>(comm);
  return work(
      *comm,
      {.ready =
           [group] { return std::count(group->comms.begin(), group->comms.end(), nullptr) == 0; },
       .effect = [] {}});
}

std::shared_ptr<SimulatedGroup> Network::child_of(SimulatedGroup& group, std::size_t number,
                                                  int color) {
  auto& child = group.children[{number, color}];
  if (!child) {
    const auto& requests = group.splits[number];
    child = std::make_shared<SimulatedGroup>(
        static_cast<int>(std::count_if(requests.begin(), requests.end(), [&](const auto& request) {
          return request.second.color == color;
        })));
  }
  return child;
}

ncclResult_t Network::split(ncclComm_t handle, int color, int key, ncclComm_t* made) {
  *made = nullptr;
  SimulatedComm* parent = idle(handle, "ncclCommSplit");
  if (parent == nullptr) return ncclInvalidArgument;
  const auto group = parent->group;
  const std::size_t number = parent->splits++;
  if (group->splits.size() <= number) group->splits.resize(number + 1);
  group->splits[number][parent->rank] = {color, key};
  const auto all_here = [group, number] {
    return group->splits[number].size() == static_cast<std::size_t>(group->size);
  };
  return work(*parent, {.ready = all_here, .effect = [this, parent, group, number, color, made] {
                          std::vector<std::pair<int, int>> members;  // (key, rank)
                          for (const auto& [rank, request] : group->splits[number]) {
                            if (request.color == color) members.emplace_back(request.key, rank);
                          }
                          std::sort(members.begin(), members.end());
                          const auto mine = std::find_if(
                              members.begin(), members.end(),
                              [&](const auto& member) { return member.second == parent->rank; });
                          comms_.push_back(std::make_unique<SimulatedComm>());
                          SimulatedComm* comm = comms_.back().get();
                          comm->group = child_of(*group, number, color);
                          comm->rank = static_cast<int>(mine - members.begin());
                          comm->device = parent->device;
                          comm->group->comms[static_cast<std::size_t>(comm->rank)] = comm;
                          comm->busy =
                              Busy{.polls = devices_.draw(3), .ready = {}, .effect = [] {}};
                          *made = reinterpret_cast<ncclComm_t>(comm);
                        }});
}

ncclResult_t Network::finalize(ncclComm_t handle) {
  SimulatedComm* comm = idle(handle, "ncclCommFinalize");
  if (comm == nullptr) return ncclInvalidArgument;
  ++comm->group->finalizing;
  return work(
      *comm,
      {.ready =
           [comm] { return comm->running == 0 && comm->group->finalizing == comm->group->size; },
       .effect = [comm] { comm->finalized = true; }});
}

ncclResult_t Network::destroy(ncclComm_t handle) {
  SimulatedComm* comm = idle(handle, "ncclCommDestroy");
  if (comm == nullptr) return ncclInvalidArgument;
  if (!comm->finalized) devices_.fail("ncclCommDestroy before ncclCommFinalize was through");
  comm->destroyed = true;
  return ncclSuccess;
}

ncclResult_t Network::abort(ncclComm_t handle) {
  SimulatedComm* comm = living(handle, "ncclCommAbort");
  if (comm == nullptr) return ncclInvalidArgument;
  comm->aborted = true;
  comm->busy.reset();
  for (SimulatedComm* peer : comm->group->comms) {
    if (peer != nullptr && peer->error == ncclSuccess) peer->error = ncclRemoteError;
  }
  devices_.progress();
  return ncclSuccess;
}

ncclResult_t Network::issue(SimulatedComm& comm, std::vector<NcclCall> calls, cudaStream_t handle) {
  SimulatedStream* stream = devices_.stream(handle);
  if (stream == nullptr || stream->device != comm.device) {
    devices_.fail("an NCCL call on a stream of another device");
    return ncclInvalidArgument;
  }
  return work(comm, {.ready = {},
                     .effect = [this, &comm, calls, stream] { enqueue(comm, calls, *stream); }});
}

void Network::enqueue(SimulatedComm& comm, std::vector<NcclCall> calls, SimulatedStream& stream) {
  SimulatedGroup& group = *comm.group;
  const auto fused = std::make_shared<Fused>();
  fused->comm = &comm;
  fused->calls = std::move(calls);
  Task task;
  for (std::size_t i = 0; i < fused->calls.size(); ++i) {
    const NcclCall& call = fused->calls[i];
    auto& others = call.kind == CallKind::send ? group.sent[{comm.rank, call.peer}]
                   : call.kind == CallKind::receive
                       ? group.received[{call.peer, comm.rank}]
                       : group.collectives[static_cast<std::size_t>(comm.rank)];
    fused->numbers.push_back(others.size());
    others.push_back({fused, i});
    task.reads.push_back(input_of(call, comm.rank, group.size));
    task.writes.push_back(output_of(call, comm.rank, group.size));
  }
  task.what = fmt::format("NCCL {} on rank {}", describe(fused->calls.front()), comm.rank);
  task.arrive = [fused] { fused->at_head = true; };
  task.ready = [this, fused] { return ready(fused); };
  task.run = [fused] {
    for (const auto& [to, bytes] : fused->results) std::memcpy(to, bytes.data(), bytes.size());
    fused->results.clear();
    fused->over = true;
    --fused->comm->running;
  };
  if (one_kernel_at_a_time) enqueued_[comm.device].push_back(fused);
  ++comm.running;
  devices_.enqueue(stream, std::move(task));
}

bool Network::ready(const std::shared_ptr<Fused>& fused) {
  return fused->comm->aborted || fused->met || meet(fused);
}

bool Network::is_first_on_device(const Fused& fused) {
  auto& enqueued = enqueued_[fused.comm->device];
  while (!enqueued.empty() && (enqueued.front()->over || enqueued.front()->comm->aborted)) {
    enqueued.pop_front();
  }
  return !enqueued.empty() && enqueued.front().get() == &fused;
}

// All calls that must be there at once for this one: its peers', those fused with them, and so on.
bool Network::meet(const std::shared_ptr<Fused>& fused) {
  SimulatedGroup& group = *fused->comm->group;
  std::vector<std::shared_ptr<Fused>> all{fused};
  std::set<const Fused*> seen{fused.get()};
  const auto need = [&](const std::vector<CallRef>& calls, std::size_t number) {
    if (calls.size() <= number) return false;
    if (seen.insert(calls[number].fused.get()).second) all.push_back(calls[number].fused);
    return true;
  };
  for (std::size_t next = 0; next < all.size(); ++next) {
    const std::shared_ptr<Fused> current = all[next];
    const int rank = current->comm->rank;
    if (!current->at_head || current->over || current->comm->aborted) return false;
    if (devices_.stalled.count(current->comm->device) > 0) return false;
    if (one_kernel_at_a_time && !is_first_on_device(*current)) return false;
    for (std::size_t i = 0; i < current->calls.size(); ++i) {
      const NcclCall& call = current->calls[i];
      const std::size_t number = current->numbers[i];
      if (call.kind == CallKind::send) {
        if (!need(group.received[{rank, call.peer}], number)) return false;
      } else if (call.kind == CallKind::receive) {
        if (!need(group.sent[{call.peer, rank}], number)) return false;
      } else {
        for (const auto& calls : group.collectives) {
          if (!need(calls, number)) return false;
        }
      }
    }
  }
  std::set<std::size_t> done;
  for (const auto& current : all) {
    current->met = true;
    for (std::size_t i = 0; i < current->calls.size(); ++i) {
      const NcclCall& call = current->calls[i];
      const std::size_t number = current->numbers[i];
      if (call.kind == CallKind::send) continue;
      if (call.kind == CallKind::receive) {
        deliver(group.sent[{call.peer, current->comm->rank}][number], {current, i});
      } else if (done.insert(number).second) {
        carry_out(group, number);
      }
    }
  }
  return true;
}

void Network::deliver(const CallRef& from, const CallRef& to) {
  const NcclCall& source = from.call();
  const NcclCall& target = to.call();
  if (source.count != target.count || source.type != target.type) {
    devices_.fail(fmt::format("rank {} calls {}, rank {} calls {}", from.fused->comm->rank,
                              describe(source), to.fused->comm->rank, describe(target)));
    return;
  }
  to.fused->results.emplace_back(target.out,
                                 bytes_at(source.in, source.count * width(source.type)));
}

void Network::carry_out(SimulatedGroup& group, std::size_t number) {
  const auto at = [&](int rank) -> const CallRef& {
    return group.collectives[static_cast<std::size_t>(rank)][number];
  };
  const NcclCall& first = at(0).call();
  for (int rank = 1; rank < group.size; ++rank) {
    const NcclCall& call = at(rank).call();
    if (call.kind == first.kind && call.count == first.count && call.type == first.type &&
        call.op == first.op && (!has_root(call.kind) || call.peer == first.peer)) {
      continue;
    }
    devices_.fail(
        fmt::format("rank 0 calls {}, rank {} calls {}", describe(first), rank, describe(call)));
    return;
  }
  const std::size_t bytes = first.count * width(first.type);
  const auto part = [&](int rank, int index) {
    return static_cast<const char*>(at(rank).call().in) + static_cast<std::size_t>(index) * bytes;
  };
  const auto give = [&](int rank, std::vector<char> result) {
    at(rank).fused->results.emplace_back(at(rank).call().out, std::move(result));
  };
  // NCCL promises no order of summation: start anywhere.
  const int start = static_cast<int>(devices_.draw(static_cast<std::uint64_t>(group.size)));
  const auto reduced = [&](std::size_t copies) {
    const auto ith = [&](int i) { return (start + i) % group.size; };
    std::vector<char> sum = bytes_at(part(ith(0), 0), copies * bytes);
    for (int i = 1; i < group.size; ++i) {
      reduce_into(scalar_type(first.type), reduce_op(first.op), sum.data(), part(ith(i), 0),
                  static_cast<std::int64_t>(copies * first.count));
    }
    return sum;
  };
  switch (first.kind) {
    case CallKind::all_reduce: {
      const std::vector<char> sum = reduced(1);
      for (int rank = 0; rank < group.size; ++rank) give(rank, sum);
      return;
    }
    case CallKind::reduce:
      give(first.peer, reduced(1));
      return;
    case CallKind::reduce_scatter: {
      const std::vector<char> sum = reduced(static_cast<std::size_t>(group.size));
      for (int rank = 0; rank < group.size; ++rank) {
        give(rank, bytes_at(sum.data() + static_cast<std::size_t>(rank) * bytes, bytes));
      }
      return;
    }
    case CallKind::broadcast: {
      const std::vector<char> sent = bytes_at(part(first.peer, 0), bytes);
      for (int rank = 0; rank < group.size; ++rank) give(rank, sent);
      return;
    }
    case CallKind::all_gather:
    case CallKind::all_to_all:
      for (int rank = 0; rank < group.size; ++rank) {
        std::vector<char> whole;
        for (int peer = 0; peer < group.size; ++peer) {
          const char* from = part(peer, first.kind == CallKind::all_to_all ? rank : 0);
          whole.insert(whole.end(), from, from + bytes);
        }
        give(rank, std::move(whole));
      }
      return;
    case CallKind::send:
    case CallKind::receive:
      return;
  }
}

void Network::break_device(int device, ncclResult_t error) {
  for (const auto& comm : comms_) {
    if (comm->device == device && comm->error == ncclSuccess) comm->error = error;
  }
  devices_.progress();
}

std::vector<std::string> Network::leaks() const {
  std::vector<std::string> all;
  for (const auto& comm : comms_) {
    if (comm->destroyed || comm->aborted) continue;
    all.push_back(fmt::format("an NCCL communicator of device {} (rank {} of {})", comm->device,
                              comm->rank, comm->group->size));
  }
  return all;
}

}  // namespace thinwire::testing
