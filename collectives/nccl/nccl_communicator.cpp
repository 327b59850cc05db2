#include "collectives/nccl/nccl_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>

#include "collectives/base/error.h"
#include "collectives/nccl/nccl_calls.h"

namespace thinwire {
namespace {

// One operation that may still run on the device.
struct Flight {
  explicit Flight(const CudaApi& cuda) : end(cuda) {}
  Event end;
  std::string what;
  Deadline deadline;
};

// The NCCL communicator of one rank and what its operations share.
//
// NCCL calls are made under `mutex_`, one at a time, and none of them waits for a peer: the NCCL
// communicator is a non-blocking one, and whoever waits polls its state, taking and leaving the
// mutex. So `abort` gets in between two polls, and nothing is called on what has been aborted.
class Link {
 public:
  Link(const NcclOptions& options, const NcclApi& nccl, const CudaApi& cuda)
      : options_(options),
        nccl_(nccl),
        cuda_(cuda),
        wire_(cuda),
        ready_(cuda),
        barrier_byte_(cuda, 1) {
    cuda_check(cuda, cuda.memset_async(barrier_byte_.get(), 0, 1, wire_.get()), "cudaMemsetAsync");
  }
  ~Link() {
    if (comm_ == nullptr || closed_.load()) return;
    try {
      finalize();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "thinwire: closing an NCCL communicator: %s\n", error.what());
    }
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  void initialize(const std::string& id, int rank, int size) {
    rank_ = rank;
    size_ = size;
    ncclUniqueId unique;
    check_equal(id.size(), sizeof unique.internal, "size of an NCCL id");
    std::memcpy(unique.internal, id.data(), sizeof unique.internal);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    // A blocking communicator could not be aborted by the thread that waits for it.
    config.blocking = 0;
    settle("joining the NCCL group", deadline(),
           [&] { return nccl_.comm_init_rank_config(&comm_, size, unique, rank, &config); });
  }

  // Joins the part of this group with the same color.
  std::shared_ptr<Link> split(int color, int key) {
    auto child = std::make_shared<Link>(options_, nccl_, cuda_);
    const Deadline until = deadline();
    // NCCL fills in the child's handle when the parent has settled, on a thread of its own.
    try {
      settle("split", until,
             [&] { return nccl_.comm_split(comm_, color, key, &child->comm_, nullptr); });
      child->settle("split", until, [] { return ncclSuccess; });
      child->use([&] {
        child->require("split", nccl_.comm_user_rank(child->comm_, &child->rank_));
        child->require("split", nccl_.comm_count(child->comm_, &child->size_));
      });
    } catch (const std::exception& error) {
      child->abort(error.what());
      throw;
    }
    std::optional<std::string> reason;
    {
      const std::lock_guard lock(reason_mutex_);
      children_.push_back(child);
      reason = reason_;
    }
    if (reason) child->abort(*reason);  // an abort that came too early to find it
    return child;
  }

  // Issues `call` on the wire, behind what is enqueued on the caller's stream.
  std::shared_ptr<Flight> enqueue(const Operation& call) {
    look();
    auto flight = std::make_shared<Flight>(cuda_);
    flight->what = call.describe();
    flight->deadline = deadline();
    ready_.record(options_.stream);
    wait(cuda_, wire_.get(), ready_);
    settle(flight->what, flight->deadline, [&] { return issue_nccl_calls(call, wire()); });
    // Only now is the operation on the wire: while NCCL is in progress it may not have started it.
    flight->end.record(wire_.get());
    const std::lock_guard lock(mutex_);
    flights_.push_back(flight);
    return flight;
  }

  // Makes the caller's stream wait for the end of the operation, which is late from `until` on.
  void join(Flight& flight, Deadline until) {
    {
      const std::lock_guard lock(mutex_);
      flight.deadline = until;
    }
    look();
    wait(cuda_, options_.stream, flight.end);
  }

  // Throws if the group is lost, or an operation is late.
  void look() {
    std::optional<std::string> late;
    use([&] {
      ncclResult_t state = ncclSuccess;
      require("an operation", nccl_.comm_get_async_error(comm_, &state));
      if (state != ncclInProgress) require("an operation", state);
      while (!flights_.empty() && is_done(cuda_, flights_.front()->end)) flights_.pop_front();
      // The wire is a queue, so the first operation in it is what a late one waits for.
      const Deadline now = Clock::now();
      const bool any_late = std::any_of(flights_.begin(), flights_.end(), [&](const auto& flight) {
        return now >= flight->deadline;
      });
      if (any_late) late = flights_.front()->what;
    });
    if (late) give_up(*late);
  }

  void host_wait(const Event& event, std::string_view what, Deadline until,
                 const std::source_location& where) {
    poll_until_done(
        cuda_, event,
        [&] {
          look();
          if (Clock::now() >= until) give_up(what);
        },
        where);
    // An abort lets the kernels run to their end, but what they leave is no result.
    use([] {});
  }

  // Poisons the group, once. Safe from any thread.
  void abort(const std::string& reason) {
    std::vector<std::shared_ptr<Link>> children;
    {
      const std::lock_guard lock(reason_mutex_);
      if (!reason_) reason_ = reason;
      for (const auto& weak : children_) {
        if (auto child = weak.lock()) children.push_back(std::move(child));
      }
    }
    {
      // Another thread may be stuck inside NCCL with the mutex, where the device's queue is full.
      // Only an abort without the mutex gets it out, and NCCL allows that.
      std::unique_lock lock(mutex_, std::defer_lock);
      const Deadline patience = Clock::now() + std::chrono::seconds(1);
      for (Backoff backoff; !lock.try_lock() && Clock::now() < patience;) backoff.pause();
      if (!closed_.exchange(true) && comm_ != nullptr) nccl_.comm_abort(comm_);
    }
    for (const auto& child : children) child->abort(reason);
  }

  int rank() const { return rank_; }
  int size() const { return size_; }
  const NcclOptions& options() const { return options_; }

 private:
  Deadline deadline() const { return Clock::now() + options_.timeout; }

  void throw_if_aborted() {
    const std::lock_guard lock(reason_mutex_);
    if (reason_) throw PeerLost(*reason_);
  }

  [[noreturn]] void lose(const std::string& reason) {
    abort(reason);
    throw_if_aborted();
    throw PeerLost(reason);
  }

  // Ends the group at an operation's deadline.
  [[noreturn]] void give_up(std::string_view what) {
    std::string who = "a peer did not take part";
    if (size_ == 2) who = fmt::format("rank {} did not take part", 1 - rank_);
    if (options_.explain_stall) who = options_.explain_stall();
    lose(fmt::format("{} timed out on rank {}: {}; see why, or raise the timeout", what, rank_,
                     who));
  }

  // Thrown inside `use`, and caught there, when NCCL has failed.
  struct NcclFailure {
    ncclResult_t result;
    std::string text;
  };

  // Runs `body` with the NCCL communicator, unless it is lost.
  template <typename Body>
  void use(Body body) {
    std::optional<NcclFailure> failure;
    {
      const std::lock_guard lock(mutex_);
      throw_if_aborted();
      try {
        body();
      } catch (const NcclFailure& error) {
        failure = error;
      }
    }
    if (!failure) return;
    if (failure->result == ncclRemoteError || failure->result == ncclSystemError) {
      lose(failure->text + "; see what happened to the peers and the network");
    }
    const std::string text = failure->text + "; see this rank's device, and NCCL_DEBUG=WARN";
    abort(text);
    throw Error(ExitCode::internal, text);
  }

  void require(std::string_view what, ncclResult_t result) {
    if (result == ncclSuccess) return;
    throw NcclFailure{result,
                      fmt::format("{} failed on rank {}: NCCL says '{}' ({})", what, rank_,
                                  nccl_.get_error_string(result), nccl_.get_last_error(comm_))};
  }

  // Makes one NCCL call and waits until NCCL has carried it out, as far as the host is concerned.
  template <typename Call>
  void settle(std::string_view what, Deadline until, Call call) {
    ncclResult_t state = ncclSuccess;
    use([&] {
      state = call();
      if (state != ncclInProgress) require(what, state);
      throw_if_aborted();  // from beside, while the call was stuck
      // A group's own result does not say what became of its communicator.
      if (state == ncclSuccess) require(what, nccl_.comm_get_async_error(comm_, &state));
      if (state != ncclInProgress) require(what, state);
    });
    for (Backoff backoff; state == ncclInProgress; backoff.pause()) {
      if (Clock::now() >= until) give_up(what);
      use([&] {
        require(what, nccl_.comm_get_async_error(comm_, &state));
        if (state != ncclInProgress) require(what, state);
      });
    }
  }

  NcclWire wire() {
    return {nccl_,
            comm_,
            wire_.get(),
            rank_,
            size_,
            options_.max_elements_per_call,
            options_.all_to_all,
            barrier_byte_.get()};
  }

  void finalize() {
    settle("flushing", deadline(), [&] { return nccl_.comm_finalize(comm_); });
    const std::lock_guard lock(mutex_);
    if (!closed_.exchange(true)) nccl_.comm_destroy(comm_);
  }

  const NcclOptions options_;
  const NcclApi& nccl_;
  const CudaApi& cuda_;
  int rank_ = 0;
  int size_ = 0;
  Stream wire_;
  Event ready_;  // recorded anew for each operation: a wait means the record before it
  DeviceMemory barrier_byte_;
  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;
  std::atomic<bool> closed_ = false;  // aborted or destroyed: the handle is no longer valid
  std::deque<std::shared_ptr<Flight>> flights_;  // in the order of the wire
  std::mutex reason_mutex_;
  std::optional<std::string> reason_;          // why it is lost
  std::vector<std::weak_ptr<Link>> children_;  // split off
};

class NcclWork final : public Work {
 public:
  NcclWork(std::shared_ptr<Link> link, Operation call)
      : Work(link->options().timeout), link_(std::move(link)), call_(std::move(call)) {}

  ~NcclWork() override {
    if (waited_) return;
    link_->abort(fmt::format("rank {} dropped an operation without waiting for it", link_->rank()));
  }

  void start() {
    flight_ = link_->enqueue(call_);
    waited_ = false;
  }

  using Work::wait;
  void wait(Deadline deadline) override {
    waited_ = true;
    link_->join(*flight_, deadline);
    if (call_.kind != OperationKind::barrier) return;
    // A barrier is there for the host, so the host waits.
    link_->host_wait(flight_->end, "barrier", deadline, std::source_location::current());
  }

  std::int64_t bytes_sent() const override {
    return direct_bytes_sent(call_, link_->rank(), link_->size());
  }

 private:
  std::shared_ptr<Link> link_;
  Operation call_;  // keeps the tensors alive
  std::shared_ptr<Flight> flight_;
  bool waited_ = true;  // until it has started there is nothing to wait for
};

class LinkCommunicator final : public NcclCommunicator {
 public:
  explicit LinkCommunicator(std::shared_ptr<Link> link)
      : NcclCommunicator(link->rank(), link->size(), link->options().timeout),
        link_(std::move(link)) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<LinkCommunicator>(link_->split(color, key));
  }

  void abort(const std::string& reason) override { link_->abort(reason); }

  void host_wait(const Event& event, std::string_view what, Deadline deadline,
                 const std::source_location& where) override {
    link_->host_wait(event, what, deadline, where);
  }

  void poll() override { link_->look(); }

 private:
  std::unique_ptr<Work> post(Operation call) override {
    for (const at::Tensor& tensor : {call.input, call.output}) {
      check(!tensor.defined() || link_->options().is_device_tensor(tensor),
            fmt::format("{}: NCCL moves tensors of a device; send host tensors over the host group",
                        name(call.kind)));
    }
    auto work = std::make_unique<NcclWork>(link_, std::move(call));
    work->start();
    return work;
  }

  std::shared_ptr<Link> link_;
};

}  // namespace

bool on_cuda_device(const at::Tensor& tensor) {
  return tensor.is_cuda();
}

std::string make_nccl_id(const NcclApi& nccl) {
  ncclUniqueId id;
  const ncclResult_t result = nccl.get_unique_id(&id);
  if (result != ncclSuccess) {
    throw Error(ExitCode::internal,
                fmt::format("ncclGetUniqueId failed: {} ({}); see whether this host has a network "
                            "interface that NCCL may use (NCCL_SOCKET_IFNAME)",
                            nccl.get_error_string(result), nccl.get_last_error(nullptr)));
  }
  return {id.internal, sizeof id.internal};
}

std::unique_ptr<NcclCommunicator> make_nccl_communicator(const std::string& id, int rank, int size,
                                                         NcclOptions options, const NcclApi& nccl,
                                                         const CudaApi& cuda) {
  check(size > 0 && rank >= 0 && rank < size, "make_nccl_communicator: no such rank");
  check(options.max_elements_per_call > 0, "max_elements_per_call must be positive");
  const auto link = std::make_shared<Link>(options, nccl, cuda);
  link->initialize(id, rank, size);
  return std::make_unique<LinkCommunicator>(link);
}

}  // namespace thinwire
