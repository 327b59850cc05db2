#include "collectives/threads/thread_communicator.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/base/thread.h"
#include "collectives/failure.h"
#include "collectives/operation.h"

namespace thinwire {
namespace {

// One collective as its ranks meet in it.
struct Meeting {
  std::vector<std::optional<Operation>> calls;  // per rank; empty until it arrived
  int arrived = 0;
  int finished_first = 0;  // ranks that are through the first phase
  std::int64_t bytes = 0;  // the most that a rank sends
  Clock::time_point due;   // when the simulated wire has delivered; set once all have arrived
  std::vector<std::vector<char>> shares;  // all_reduce: each rank's reduced share
};

// What it means that a rank's communicator is destroyed by an exception.
enum class Unwinding {
  is_leaving,  // The rank has left, as if there were no exception.
  is_told,     // Nothing yet: who catches the exception aborts the group and says why.
};

// What the ranks of one group share. Everything is guarded by `mutex` but the tensors of a meeting,
// of which the phases decide who may touch them.
struct Group {
  Group(int group_size, ThreadGroupOptions group_options, Unwinding group_unwinding)
      : size(group_size),
        options(group_options),
        unwinding(group_unwinding),
        next(static_cast<std::size_t>(group_size), 0),
        left(static_cast<std::size_t>(group_size), false) {}

  const int size;
  const ThreadGroupOptions options;
  const Unwinding unwinding;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::int64_t> next;                         // per rank: its next operation's number
  std::vector<bool> left;                                 // per rank: it calls no more
  std::map<std::int64_t, std::shared_ptr<Meeting>> open;  // not everybody has arrived yet
  std::map<std::pair<std::int64_t, int>, std::weak_ptr<Group>> children;  // (operation, color)
  Clock::time_point wire_free{};
  std::optional<Failure> failure;
  int copying = 0;  // ranks that read their peers' tensors right now

  void abort_locked(const std::string& reason) { end_locked({FailureKind::lost, reason}); }

  void end_locked(const Failure& why) {
    if (!failure) failure = why;
    failure->from = std::min(failure->from, why.from);
    changed.notify_all();
    for (const auto& [place, weak] : children) {
      const auto child = weak.lock();
      if (!child) continue;
      const std::lock_guard lock(child->mutex);
      child->end_locked({failure->kind, failure->reason});
    }
  }
};

char* bytes_of(const at::Tensor& tensor) {
  return static_cast<char*>(tensor.data_ptr());
}

std::int64_t element_bytes(const at::Tensor& tensor) {
  return static_cast<std::int64_t>(tensor.element_size());
}

void copy_bytes(char* to, const char* from, std::int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

class ThreadWork final : public Work {
 public:
  ThreadWork(std::shared_ptr<Group> group, std::shared_ptr<Meeting> meeting, std::int64_t number,
             int rank, std::int64_t bytes)
      : Work(group->options.timeout),
        group_(std::move(group)),
        meeting_(std::move(meeting)),
        number_(number),
        rank_(rank),
        bytes_(bytes) {}

  ~ThreadWork() override {
    if (waited_) return;
    const std::lock_guard lock(group_->mutex);
    group_->abort_locked(fmt::format("rank {} dropped an operation without waiting for it", rank_));
  }

  using Work::wait;
  void wait(Deadline deadline) override {
    std::unique_lock lock(group_->mutex);
    if (waited_ && !done_) raise(*group_->failure);
    if (waited_) return;
    waited_ = true;
    await(lock, deadline, [&] { return meeting_->arrived == group_->size; });
    await(
        lock, deadline, [&] { return Clock::now() >= meeting_->due; }, meeting_->due);
    unlocked(lock, [&] { first_phase(); });
    ++meeting_->finished_first;
    group_->changed.notify_all();
    await(lock, deadline, [&] { return meeting_->finished_first == group_->size; });
    if (mine().kind == OperationKind::all_reduce) unlocked(lock, [&] { gather_shares(); });
    done_ = true;
  }

  std::int64_t bytes_sent() const override { return bytes_; }

 private:
  const Operation& call(int rank) const { return *meeting_->calls[static_cast<std::size_t>(rank)]; }
  const Operation& mine() const { return call(rank_); }

  // Waits until `ready()`, which changes with a notification or at the time `look_again`.
  template <typename Ready>
  void await(std::unique_lock<std::mutex>& lock, Deadline deadline, Ready ready,
             Clock::time_point look_again = Clock::time_point::max()) {
    while (!ready()) {
      miss_those_who_left();
      if (!failed() && Clock::now() >= deadline) group_->abort_locked(missing());
      if (failed()) break;
      group_->changed.wait_until(lock, std::min(deadline, look_again));
    }
    // An operation of which all ranks have done their part has succeeded, whatever happened since.
    if (meeting_->finished_first == group_->size || !failed()) return;
    // Nobody may still read this rank's tensors when it unwinds and frees them.
    group_->changed.wait(lock, [&] { return group_->copying == 0; });
    raise(*group_->failure);
  }

  void miss_those_who_left() {
    for (int rank = 0; rank < group_->size; ++rank) {
      const auto at = static_cast<std::size_t>(rank);
      if (!group_->left[at] || group_->next[at] > number_) continue;
      group_->end_locked({FailureKind::lost, left_before(rank, mine().describe()), number_});
    }
  }

  bool failed() const { return group_->failure && number_ >= group_->failure->from; }

  // Runs `body` without the lock, counted, so that an abort can wait for its end.
  template <typename Body>
  void unlocked(std::unique_lock<std::mutex>& lock, Body body) {
    ++group_->copying;
    lock.unlock();
    body();
    lock.lock();
    if (--group_->copying == 0) group_->changed.notify_all();
  }

  std::string missing() const {
    std::vector<int> ranks;
    for (int rank = 0; rank < group_->size; ++rank) {
      if (!meeting_->calls[static_cast<std::size_t>(rank)]) ranks.push_back(rank);
    }
    return fmt::format(
        "{} timed out on rank {}: {}; see why, or raise the timeout", mine().describe(), rank_,
        ranks.empty() ? "all ranks arrived, but not all of them went on"
                      : fmt::format("rank {} did not arrive", fmt::join(ranks, ", ")));
  }

  void first_phase() {
    const Operation& me = mine();
    switch (me.kind) {
      case OperationKind::barrier:
      case OperationKind::split:
        return;
      case OperationKind::all_reduce: {
        if (group_->size == 1) return;
        const auto share = static_cast<std::size_t>(rank_);
        auto& result = meeting_->shares[share];
        const std::int64_t count = me.output_counts[share];
        result.resize(static_cast<std::size_t>(count * element_bytes(me.input)));
        reduce_share(result.data(), offsets_of(me.output_counts)[share], count);
        return;
      }
      case OperationKind::reduce_scatter: {
        const auto share = static_cast<std::size_t>(rank_);
        reduce_share(bytes_of(me.output), offsets_of(me.input_counts)[share],
                     me.input_counts[share]);
        return;
      }
      case OperationKind::all_gather: {
        const Counts offsets = offsets_of(me.output_counts);
        for (int rank = 0; rank < group_->size; ++rank) {
          copy_bytes(bytes_of(me.output) +
                         offsets[static_cast<std::size_t>(rank)] * element_bytes(me.output),
                     bytes_of(call(rank).input),
                     call(rank).input.numel() * element_bytes(me.output));
        }
        return;
      }
      case OperationKind::all_to_all: {
        const Counts to = offsets_of(me.output_counts);
        for (int rank = 0; rank < group_->size; ++rank) {
          const Operation& peer = call(rank);
          const std::int64_t from = offsets_of(peer.input_counts)[static_cast<std::size_t>(rank_)];
          copy_bytes(
              bytes_of(me.output) + to[static_cast<std::size_t>(rank)] * element_bytes(me.output),
              bytes_of(peer.input) + from * element_bytes(me.output),
              me.output_counts[static_cast<std::size_t>(rank)] * element_bytes(me.output));
        }
        return;
      }
      case OperationKind::broadcast:
        copy_bytes(bytes_of(me.output), bytes_of(call(me.root).input),
                   me.output.numel() * element_bytes(me.output));
        return;
    }
  }

  // to := the reduction over ranks of `count` input elements of this rank's share, from `begin` on.
  void reduce_share(char* to, std::int64_t begin, std::int64_t count) {
    const Operation& me = mine();
    const std::int64_t offset = begin * element_bytes(me.input);
    const auto terms = [&](int step) {
      return bytes_of(call(ring_order(rank_, step, group_->size)).input) + offset;
    };
    copy_bytes(to, terms(0), count * element_bytes(me.input));
    for (int step = 1; step < group_->size; ++step) {
      reduce_into(me.input.scalar_type(), me.op, to, terms(step), count);
    }
  }

  void gather_shares() {
    if (group_->size == 1) return;
    char* to = bytes_of(mine().output);
    for (const auto& share : meeting_->shares) {
      copy_bytes(to, share.data(), static_cast<std::int64_t>(share.size()));
      to += share.size();
    }
  }

  std::shared_ptr<Group> group_;
  std::shared_ptr<Meeting> meeting_;
  std::int64_t number_;
  int rank_;
  std::int64_t bytes_;
  bool waited_ = false;
  bool done_ = false;
};

class ThreadCommunicator final : public OperationCommunicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank)
      : OperationCommunicator(rank, group->size, group->options.timeout),
        group_(std::move(group)) {}

  ~ThreadCommunicator() override {
    if (group_->unwinding == Unwinding::is_told && std::uncaught_exceptions() > exceptions_) return;
    const std::lock_guard lock(group_->mutex);
    group_->left[static_cast<std::size_t>(this->rank())] = true;
    group_->changed.notify_all();
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    at::Tensor mine = at::empty({2}, at::kLong);
    mine.data_ptr<std::int64_t>()[0] = color;
    mine.data_ptr<std::int64_t>()[1] = key;
    at::Tensor all = at::empty({2 * size()}, at::kLong);
    all_gather(all, mine, {})->wait();
    std::vector<std::pair<std::int64_t, int>> members;  // (key, rank), sorted
    for (int peer = 0; peer < size(); ++peer) {
      const std::int64_t* entry = all.data_ptr<std::int64_t>() + 2 * peer;
      if (entry[0] == color) members.emplace_back(entry[1], peer);
    }
    std::sort(members.begin(), members.end());
    const auto place = std::find_if(members.begin(), members.end(),
                                    [&](const auto& member) { return member.second == rank(); });

    std::shared_ptr<Group> child;
    {
      const std::lock_guard lock(group_->mutex);
      auto& slot = group_->children[{group_->next[static_cast<std::size_t>(rank())], color}];
      child = slot.lock();
      if (!child) {
        child = std::make_shared<Group>(static_cast<int>(members.size()), group_->options,
                                        group_->unwinding);
        slot = child;
      }
    }
    // No member lets go of its communicator before all have found the group.
    barrier()->wait();
    return std::make_unique<ThreadCommunicator>(child, static_cast<int>(place - members.begin()));
  }

  void abort(const std::string& reason) override {
    const std::lock_guard lock(group_->mutex);
    group_->abort_locked(reason);
  }

 private:
  std::unique_ptr<Work> post(Operation call) override {
    const std::int64_t bytes = direct_bytes_sent(call, rank(), size());
    const std::lock_guard lock(group_->mutex);
    auto& next = group_->next[static_cast<std::size_t>(rank())];
    if (group_->failure && next >= group_->failure->from) raise(*group_->failure);
    const std::int64_t number = next++;
    auto& slot = group_->open[number];
    if (!slot) {
      slot = std::make_shared<Meeting>();
      slot->calls.resize(static_cast<std::size_t>(size()));
      slot->shares.resize(static_cast<std::size_t>(size()));
    }
    const std::shared_ptr<Meeting> meeting = slot;
    for (int peer = 0; peer < size(); ++peer) {
      const auto& other = meeting->calls[static_cast<std::size_t>(peer)];
      if (!other) continue;
      const std::string problem = disagreement(CallRecord(*other).towards(rank()), peer,
                                               CallRecord(call).towards(peer), rank());
      if (problem.empty()) continue;
      group_->end_locked({FailureKind::disagree, problem});
      raise(*group_->failure);
    }
    meeting->calls[static_cast<std::size_t>(rank())] = std::move(call);
    meeting->bytes = std::max(meeting->bytes, bytes);
    if (++meeting->arrived == size()) {
      group_->open.erase(number);
      meeting->due = group_->wire_free = delivery(meeting->bytes);
      group_->changed.notify_all();
    }
    return std::make_unique<ThreadWork>(group_, meeting, number, rank(), bytes);
  }

  // The time at which the simulated wire will have carried `bytes`, after what it carries already.
  Clock::time_point delivery(std::int64_t bytes) const {
    const SimulatedLink& link = group_->options.link;
    Clock::duration takes = link.latency;
    if (link.bytes_per_second > 0) {
      takes += std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(static_cast<double>(bytes) / link.bytes_per_second));
    }
    return std::max(Clock::now(), group_->wire_free) + takes;
  }

  std::shared_ptr<Group> group_;
  const int exceptions_ = std::uncaught_exceptions();
};

bool is_peer_lost(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const PeerLost&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_group(int size, ThreadGroupOptions options) {
  check(size > 0, "a group needs at least one rank");
  const auto group = std::make_shared<Group>(size, options, Unwinding::is_leaving);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(group, rank));
  }
  return ranks;
}

void run_ranks(int size, const std::function<void(std::unique_ptr<Communicator>)>& body,
               ThreadGroupOptions options) {
  check(size > 0, "a group needs at least one rank");
  const auto group = std::make_shared<Group>(size, options, Unwinding::is_told);
  std::exception_ptr first;  // guarded by the group's mutex
  const auto failed = [&](int rank, const std::string& why) {
    const std::lock_guard lock(group->mutex);
    // A rank that fails aborts the group while it unwinds, so a peer that lost it may be here
    // before.
    const auto current = std::current_exception();
    if (!first || (is_peer_lost(first) && !is_peer_lost(current))) first = current;
    group->abort_locked(fmt::format("rank {} failed: {}", rank, why));
  };
  const int threads_per_rank = at::get_num_threads();
  // No rank begins before all have a thread: where one cannot be made nothing has happened yet.
  std::promise<bool> made;
  const std::shared_future<bool> all_made = made.get_future().share();
  const auto run = [&](int rank) {
    if (!all_made.get()) return;
    try {
      // libtorch keeps this per thread and sets it on the first parallel operation; a matrix
      // product before that would use all cores, and round differently.
      at::set_num_threads(threads_per_rank);
      body(std::make_unique<ThreadCommunicator>(group, rank));
    } catch (const std::exception& error) {
      failed(rank, without_stack(error.what()));
    } catch (...) {
      failed(rank, "an unknown exception");
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(size));
  try {
    for (int rank = 0; rank < size; ++rank) {
      threads.push_back(make_thread([&run, rank] { run(rank); }));
    }
  } catch (const Error&) {
    first = std::current_exception();
  }
  made.set_value(!first);
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace thinwire
