#include "runtime/watch/lifeline.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/base/thread.h"
#include "collectives/net/call.h"
#include "collectives/net/door.h"
#include "runtime/watch/messages.h"
#include "runtime/watch/wire.h"

namespace thinwire {
namespace {

using net::Descriptor;
using std::chrono::milliseconds;
using watch::Wire;

constexpr milliseconds kLongestJoin{10000};
constexpr milliseconds kLongestGoodbye{1000};
constexpr milliseconds kFresh{2000};
constexpr milliseconds kGiveUp{3000};

double in_seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Of rank 0, one of the addresses of `invitation`, "port address address ..."; throws `IoError`.
Wire connect_to_host(const net::JobIdentity& identity, int rank, const std::string& invitation,
                     milliseconds timeout) {
  std::istringstream in(invitation);
  int port = 0;
  in >> port;
  std::vector<net::Address> addresses;
  std::vector<std::string> names;
  for (std::string address; in >> address;) {
    for (const net::Address& one : net::resolve(address, port)) addresses.push_back(one);
    names.push_back(printable(address));
  }
  try {
    Descriptor socket = net::call(addresses, identity, {net::Role::lifeline, rank, 0},
                                  Clock::now() + std::min(timeout / 2, kLongestJoin), [] {});
    net::tune(socket, timeout);
    return Wire(std::move(socket));
  } catch (const PeerLost& error) {
    throw IoError(fmt::format("rank {} cannot reach rank 0 at {}, port {}: {}", rank,
                              fmt::join(names, ", "), port, error.what()));
  }
}

}  // namespace

// Sockets and peers belong to the thread; what other threads may touch is guarded by `mutex_`.
class Lifeline::Thread {
 public:
  Thread(const net::JobIdentity& identity, int rank, Parts parts)
      : identity_(identity),
        rank_(rank),
        parts_(std::move(parts)),
        wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (!wake_.open()) throw IoError("cannot make an eventfd; check the limits on open files");
  }
  ~Thread() {
    if (!thread_.joinable()) return;
    ask_to_leave("");
    thread_.join();
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  void listen(const std::string& address) {
    Descriptor listener = net::ListenPlace{address}.listen(0);
    if (!listener.open()) {
      throw IoError(
          fmt::format("cannot listen for the lifeline at {}: {}; check the limits on open "
                      "files and the network",
                      address.empty() ? "any address" : address, net::error_text(errno)));
    }
    door_.emplace(std::move(listener), identity_, rank_);
    const auto addresses =
        address.empty() ? net::own_addresses() : std::vector<std::string>{address};
    invitation_ = fmt::format("{} {}", door_->port(), fmt::join(addresses, " "));
  }
  void add_peer(int rank, Wire wire) {
    Peer& peer = peers_[rank];
    peer.wire = std::move(wire);
    peer.heard = Clock::now();
  }
  void start() {
    thread_ = make_thread([this] { run(); });
  }

  const std::string& invitation() const { return invitation_; }

  // With an empty message just closes.
  void ask_to_leave(const std::string& message) {
    std::unique_lock lock(mutex_);
    if (!farewell_) farewell_ = message;
    wake();
    changed_.wait_for(lock, 2 * kLongestGoodbye, [&] { return left_; });
  }
  std::optional<std::string> lost(Deadline deadline) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, deadline, [&] { return lost_ || left_; });
    return lost_;
  }

 private:
  struct Peer {
    Wire wire;
    Clock::time_point heard;
    Activity activity;
  };

  bool hosts() const { return rank_ == 0; }
  void wake() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
  }

  void run() {
    while (true) {
      {
        const std::lock_guard lock(mutex_);
        if (farewell_) break;
      }
      report();
      const auto before = Clock::now();
      wait_for_input();
      const auto paused = Clock::now() - before;
      if (paused > std::max(parts_.timeout / 2, milliseconds(1000))) {
        stopped_ =
            fmt::format("this rank itself was stopped for {:.1f} s; then ", in_seconds(paused));
      }
      read_peers();
      admit_guests();
      if (!over_) judge();
    }
    leave();
  }

  // Says what this rank does: soon after it changed, and often enough not to be missed.
  void report() {
    const auto now = Clock::now();
    const milliseconds often = hosts() ? milliseconds(1000) : milliseconds(250);
    const auto seldom = std::min(milliseconds(1000), parts_.timeout / 4);
    if (now - reported_at_ < std::min(often, seldom)) return;
    const Activity activity = parts_.look();
    Activity changed = activity;
    if (changed.waiting) changed.waiting = milliseconds(0);
    if (changed == reported_ && now - reported_at_ < seldom) return;
    reported_ = changed;
    reported_at_ = now;
    for (auto& [rank, peer] : peers_) {
      // One that does not read needs no second report.
      if (peer.wire.open() && !peer.wire.wants_to_write())
        peer.wire.send(watch::report_line(activity));
    }
  }

  void wait_for_input() {
    std::vector<pollfd> polled;
    const auto add = [&](int descriptor, bool writes) {
      polled.push_back({descriptor, static_cast<short>(POLLIN | (writes ? POLLOUT : 0)), 0});
    };
    add(wake_.get(), false);
    for (auto& [rank, peer] : peers_) {
      if (peer.wire.open()) add(peer.wire.descriptor(), peer.wire.wants_to_write());
    }
    if (door_) door_->add_to(polled);
    const auto pause = std::clamp(parts_.timeout / 8, milliseconds(20), milliseconds(125));
    ::poll(polled.data(), polled.size(), static_cast<int>(pause.count()));
  }

  void read_peers() {
    for (auto& [rank, peer] : peers_) {
      if (!peer.wire.open()) continue;
      peer.wire.flush();
      for (const std::string& line : peer.wire.receive()) read(rank, peer, line);
      if (!peer.wire.open()) closed_.push_back(rank);
    }
    for (const int rank : std::exchange(gone_, {})) peers_.erase(rank);
    for (const int rank : std::exchange(closed_, {})) {
      const auto peer = peers_.find(rank);
      if (peer == peers_.end()) continue;  // it said goodbye
      const Activity last = peer->second.activity;
      peers_.erase(peer);
      lose(fmt::format("{} died (its connection closed), last seen: {}", name_of(rank),
                       describe(last)));
    }
  }

  void read(int rank, Peer& peer, const std::string& line) {
    const watch::Message message = watch::parse_message(line);
    peer.heard = Clock::now();
    switch (message.kind) {
      case watch::Message::Kind::report:
        peer.activity = message.activity;
        return;
      case watch::Message::Kind::lost:
        return lose(message.text);
      case watch::Message::Kind::failed:
        lose(fmt::format("{} failed: {}", name_of(rank), message.text));
        break;
      case watch::Message::Kind::none:
        lose(fmt::format("{} sent what this program does not send", name_of(rank)));
        break;
      case watch::Message::Kind::bye:
        break;
    }
    peer.wire.close();
    gone_.push_back(rank);
  }

  // Until every rank has come; who has left does not come again.
  void admit_guests() {
    if (!door_) return;
    const auto expected = [&](const net::Introduction& who) {
      return who.role == net::Role::lifeline && !came_.contains(who.guest);
    };
    door_->admit(expected, [&](const net::Introduction& who, Descriptor socket) {
      came_.insert(who.guest);
      net::tune(socket, parts_.timeout);
      add_peer(who.guest, Wire(std::move(socket)));
    });
    if (static_cast<int>(came_.size()) + 1 == identity_.size) door_.reset();
  }

  // Is a peer silent, or somebody waiting for one that does not come?
  void judge() {
    const auto now = Clock::now();
    std::vector<int> silent;
    for (const auto& [rank, peer] : peers_) {
      if (now - peer.heard > parts_.timeout) silent.push_back(rank);
    }
    if (silent.size() > 1 && silent.size() == peers_.size()) {
      lose(fmt::format("rank {} has heard from no other rank for {:.1f} s: its network is down",
                       rank_, in_seconds(parts_.timeout)));
    } else if (!silent.empty()) {
      const Peer& peer = peers_.at(silent.front());
      lose(fmt::format(
          "{} has not been heard from for {:.1f} s (it is stopped, or its network is down), last "
          "seen: {}",
          name_of(silent.front()), in_seconds(now - peer.heard), describe(peer.activity)));
    } else if (hosts()) {
      judge_progress(now);
    }
  }

  void judge_progress(Clock::time_point now) {
    std::map<int, Activity> table{{rank_, parts_.look()}};
    for (const auto& [rank, peer] : peers_) {
      Activity activity = peer.activity;
      const auto age = std::chrono::duration_cast<milliseconds>(now - peer.heard);
      // What is long ago says little of now.
      if (activity.waiting && age < kFresh) *activity.waiting += age;
      table[rank] = activity;
    }
    const auto waited = [](const auto& entry) {
      return entry.second.waiting.value_or(milliseconds(0));
    };
    const auto longest =
        *std::max_element(table.begin(), table.end(),
                          [&](const auto& a, const auto& b) { return waited(a) < waited(b); });
    if (waited(longest) <= parts_.timeout) return;

    const Activity& waiting = longest.second;
    std::vector<std::string> behind;
    for (const auto& [rank, activity] : table) {
      if (activity.operations < waiting.operations) {
        behind.push_back(fmt::format("rank {} is behind: {}", rank, describe(activity)));
      }
    }
    // It may have called the operation and not wait for it, and a backend may need its wait.
    if (behind.empty()) {
      for (const auto& [rank, activity] : table) {
        if (activity.operations == waiting.operations && !activity.waiting) {
          behind.push_back(fmt::format("rank {} does not wait: {}", rank, describe(activity)));
        }
      }
    }
    if (behind.empty()) {
      // A communicator that gives up by itself knows more: whose messages are missing.
      if (waited(longest) <= parts_.timeout + kGiveUp) return;
      behind.emplace_back("every rank has come to it, so the network between some of them is down");
    }
    lose(fmt::format("{} of step {} did not end within {:.1f} s: {}", waiting.operation,
                     waiting.step, in_seconds(parts_.timeout), fmt::join(behind, "; ")));
  }

  static std::string name_of(int rank) {
    return rank == 0 ? "rank 0, which hosts the lifeline," : fmt::format("rank {}", rank);
  }

  void lose(const std::string& what) {
    if (over_) return;
    over_ = true;
    if (hosts()) {
      for (auto& [rank, peer] : peers_) peer.wire.send(watch::lost_line(what));
    }
    const std::string reason =
        fmt::format("{}{}; this rank: {}", stopped_, what, describe(parts_.look()));
    {
      const std::lock_guard lock(mutex_);
      lost_ = reason;
    }
    changed_.notify_all();
    if (parts_.on_lost) parts_.on_lost(reason);
  }

  // The last line goes out before the connection closes, and arrives: closing with unread input
  // would throw away what is on its way.
  void leave() {
    std::string farewell;
    {
      const std::lock_guard lock(mutex_);
      farewell = *farewell_;
    }
    over_ = true;
    door_.reset();
    if (!farewell.empty()) {
      for (auto& [rank, peer] : peers_) {
        peer.wire.send(farewell);
        peer.wire.finish_sending();
      }
      const auto deadline = Clock::now() + kLongestGoodbye;
      while (!peers_.empty() && Clock::now() < deadline) {
        std::vector<pollfd> polled;
        for (auto& [rank, peer] : peers_) polled.push_back({peer.wire.descriptor(), POLLIN, 0});
        ::poll(polled.data(), polled.size(), 20);
        for (auto& [rank, peer] : peers_) peer.wire.receive();
        std::erase_if(peers_, [](const auto& entry) { return !entry.second.wire.open(); });
      }
    }
    peers_.clear();
    {
      const std::lock_guard lock(mutex_);
      left_ = true;
    }
    changed_.notify_all();
  }

  const net::JobIdentity identity_;
  const int rank_;
  const Parts parts_;
  const Descriptor wake_;
  std::optional<net::Door> door_;  // rank 0's, until all have come
  std::set<int> came_;
  std::string invitation_;
  std::map<int, Peer> peers_;  // those that are connected
  std::vector<int> closed_;    // to be taken out of `peers_`: died
  std::vector<int> gone_;      // and: left
  Activity reported_;
  Clock::time_point reported_at_{};
  std::string stopped_;  // if this process stood still, so that its losses may be its own doing
  bool over_ = false;    // somebody was lost, or this rank leaves

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<std::string> farewell_;  // leave with this line
  std::optional<std::string> lost_;
  bool left_ = false;
  std::thread thread_;  // last: it uses the others
};

Lifeline::Lifeline(std::unique_ptr<Thread> thread) : thread_(std::move(thread)) {
  thread_->start();
}

Lifeline::~Lifeline() = default;

std::unique_ptr<Lifeline> Lifeline::host(const Access& access, Parts parts) {
  auto thread = std::make_unique<Thread>(access.identity, 0, std::move(parts));
  thread->listen(access.address);
  return std::unique_ptr<Lifeline>(new Lifeline(std::move(thread)));
}

std::unique_ptr<Lifeline> Lifeline::join(const net::JobIdentity& identity, int rank,
                                         const std::string& invitation, Parts parts) {
  const milliseconds timeout = parts.timeout;
  auto thread = std::make_unique<Thread>(identity, rank, std::move(parts));
  thread->add_peer(0, connect_to_host(identity, rank, invitation, timeout));
  return std::unique_ptr<Lifeline>(new Lifeline(std::move(thread)));
}

const std::string& Lifeline::invitation() const {
  return thread_->invitation();
}

void Lifeline::goodbye() {
  thread_->ask_to_leave(watch::bye_line());
}

void Lifeline::fail(const std::string& why) {
  thread_->ask_to_leave(watch::fail_line(why));
}

std::optional<std::string> Lifeline::lost(Deadline deadline) {
  return thread_->lost(deadline);
}

std::unique_ptr<Lifeline> make_lifeline(Communicator& communicator, const Lifeline::Access& access,
                                        Lifeline::Parts parts) {
  std::unique_ptr<Lifeline> lifeline;
  std::string invitation;
  std::string problem;
  const auto attempt = [&](auto action) {
    try {
      action();
    } catch (const std::exception& error) {
      problem = error.what();
    }
  };
  if (communicator.rank() == 0) {
    attempt([&] {
      lifeline = Lifeline::host(access, parts);
      invitation = lifeline->invitation();
    });
  }
  invitation = broadcast_text(communicator, invitation, 0);
  if (communicator.rank() > 0 && !invitation.empty()) {
    attempt([&] {
      lifeline = Lifeline::join(access.identity, communicator.rank(), invitation, parts);
    });
  }
  std::string problems;
  for (const std::string& text : all_gather_text(communicator, problem)) {
    if (!text.empty()) problems += (problems.empty() ? "" : "; ") + text;
  }
  if (problems.empty()) return lifeline;
  if (lifeline) lifeline->goodbye();
  throw AgreedError(ExitCode::io_error,
                    problems + "; open the port of rank 0 to the other machines");
}

net::JobKey share_new_key(Communicator& communicator) {
  net::JobKey key;
  if (communicator.rank() == 0) key = net::random_key();
  const std::string shared =
      broadcast_text(communicator, std::string(key.bytes.begin(), key.bytes.end()), 0);
  check_equal(shared.size(), key.bytes.size(), "a key has 32 bytes");
  std::copy(shared.begin(), shared.end(), key.bytes.begin());
  return key;
}

}  // namespace thinwire
