#include "runtime/watch/lifeline.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "runtime/base/error.h"
#include "runtime/base/hash.h"
#include "runtime/watch/wire.h"

namespace thinwire {
namespace {

using std::chrono::milliseconds;
using watch::Descriptor;
using watch::Wire;

constexpr milliseconds kLongestJoin{10000};
constexpr milliseconds kLongestGoodbye{1000};
constexpr milliseconds kFresh{2000};
constexpr milliseconds kGiveUp{3000};
constexpr std::size_t kMostStrangers = 64;

double in_seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Messages are lines: a word and what it needs.
//   hello SECRET RANK       a rank's first; answered by "welcome SECRET"
//   report ...              an activity
//   lost TEXT               the host: who was lost
//   fail TEXT | bye         the sender's last

std::string report_line(const Activity& activity) {
  return fmt::format("report {} {} {} {}\t{}", activity.step, activity.operations,
                     activity.waiting ? activity.waiting->count() : -1, activity.doing,
                     activity.operation);
}

Activity parse_report(const std::string& text) {
  Activity activity;
  std::istringstream in(text);
  std::int64_t waiting = -1;
  in >> activity.step >> activity.operations >> waiting;
  in.ignore(1);
  std::getline(in, activity.doing, '\t');
  std::getline(in, activity.operation);
  if (waiting >= 0) activity.waiting = milliseconds(waiting);
  return activity;
}

// "word rest" -> {word, rest}.
std::pair<std::string, std::string> split_word(const std::string& line) {
  const auto space = line.find(' ');
  if (space == std::string::npos) return {line, ""};
  return {line.substr(0, space), line.substr(space + 1)};
}

std::string new_secret() {
  std::random_device random;
  std::string secret;
  for (int i = 0; i < 4; ++i) secret += fmt::format("{:08x}", random());
  return secret;
}

// The first of rank 0's addresses that answers with the secret; throws `IoError`.
Wire connect_to_host(int rank, const std::string& invitation, milliseconds timeout) {
  std::istringstream in(invitation);
  std::string secret;
  std::uint16_t port = 0;
  in >> secret >> port;
  std::vector<Wire> wires;
  std::vector<std::string> addresses;
  for (std::string address; in >> address;) {
    addresses.push_back(address);
    wires.emplace_back(watch::begin_connect(address, port));
    // Leaves with the first flush after the connection is made.
    wires.back().send(fmt::format("hello {} {}", secret, rank));
  }
  const auto deadline = Clock::now() + std::min(timeout, kLongestJoin);
  while (Clock::now() < deadline) {
    std::vector<pollfd> polled;
    for (const Wire& wire : wires) {
      const auto events = static_cast<short>(POLLIN | (wire.wants_to_write() ? POLLOUT : 0));
      polled.push_back({wire.descriptor(), events, 0});
    }
    ::poll(polled.data(), polled.size(), 50);
    bool any_open = false;
    for (std::size_t i = 0; i < wires.size(); ++i) {
      if (polled[i].revents == 0) {
        any_open |= wires[i].open();
        continue;
      }
      wires[i].flush();
      // What may follow the welcome already, a report, comes again.
      for (const std::string& line : wires[i].receive()) {
        if (line == "welcome " + secret) return std::move(wires[i]);
      }
      any_open |= wires[i].open();
    }
    if (!any_open) break;
  }
  throw IoError(fmt::format("rank {} cannot reach rank 0 at {}, port {}", rank,
                            fmt::join(addresses, ", "), port));
}

}  // namespace

// Sockets and peers belong to the thread; what other threads may touch is guarded by `mutex_`.
class Lifeline::Thread {
 public:
  Thread(int rank, int size, Parts parts)
      : rank_(rank), size_(size), parts_(std::move(parts)), wake_(::eventfd(0, EFD_NONBLOCK)) {
    if (!wake_.open()) throw IoError("cannot make an eventfd; check the limits on open files");
  }
  ~Thread() {
    if (!thread_.joinable()) return;
    ask_to_leave("");
    thread_.join();
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  void listen() {
    listener_ = watch::listen_anywhere();
    secret_ = new_secret();
    invitation_ = fmt::format("{} {} {}", secret_, watch::port_of(listener_),
                              fmt::join(watch::own_addresses(), " "));
  }
  void add_peer(int rank, Wire wire) {
    Peer& peer = peers_[rank];
    peer.wire = std::move(wire);
    peer.heard = Clock::now();
  }
  void start() {
    thread_ = std::thread([this] { run(); });
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
  struct Stranger {
    Wire wire;
    Clock::time_point since;
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
      if (hosts()) admit_strangers();
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
      if (peer.wire.open() && !peer.wire.wants_to_write()) peer.wire.send(report_line(activity));
    }
  }

  void wait_for_input() {
    std::vector<pollfd> polled;
    const auto add = [&](int descriptor, bool writes) {
      polled.push_back({descriptor, static_cast<short>(POLLIN | (writes ? POLLOUT : 0)), 0});
    };
    add(wake_.get(), false);
    if (listener_.open() && strangers_.size() < kMostStrangers) add(listener_.get(), false);
    for (auto& [rank, peer] : peers_) {
      if (peer.wire.open()) add(peer.wire.descriptor(), peer.wire.wants_to_write());
    }
    for (const Stranger& stranger : strangers_) add(stranger.wire.descriptor(), false);
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
    const auto [word, text] = split_word(line);
    peer.heard = Clock::now();
    if (word == "report") {
      peer.activity = parse_report(text);
    } else if (word == "lost") {
      lose(text);
    } else if (word == "bye" || word == "fail") {
      if (word == "fail") lose(fmt::format("{} failed: {}", name_of(rank), text));
      peer.wire.close();
      gone_.push_back(rank);
    }
  }

  void admit_strangers() {
    while (strangers_.size() < kMostStrangers) {
      Descriptor socket = watch::accept_from(listener_);
      if (!socket.open()) break;
      strangers_.push_back({Wire(std::move(socket)), Clock::now()});
    }
    for (Stranger& stranger : strangers_) {
      const auto lines = stranger.wire.receive();
      if (!lines.empty()) {
        welcome(stranger.wire, lines.front());
      } else if (Clock::now() - stranger.since > kLongestJoin) {
        stranger.wire.close();
      }
    }
    std::erase_if(strangers_, [](const Stranger& stranger) { return !stranger.wire.open(); });
  }

  void welcome(Wire& wire, const std::string& line) {
    std::istringstream in(line);
    std::string word;
    std::string secret;
    int rank = -1;
    in >> word >> secret >> rank;
    const bool expected =
        word == "hello" && secret == secret_ && rank > 0 && rank < size_ && !peers_.contains(rank);
    if (!expected) return wire.close();
    wire.send("welcome " + secret_);
    add_peer(rank, std::exchange(wire, Wire()));
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
      for (auto& [rank, peer] : peers_) peer.wire.send("lost " + what);
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
    listener_.reset();
    strangers_.clear();
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

  const int rank_;
  const int size_;
  const Parts parts_;
  const Descriptor wake_;
  Descriptor listener_;
  std::string secret_;
  std::string invitation_;
  std::map<int, Peer> peers_;  // those that are connected
  std::vector<Stranger> strangers_;
  std::vector<int> closed_;  // to be taken out of `peers_`: died
  std::vector<int> gone_;    // and: left
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

std::unique_ptr<Lifeline> Lifeline::host(int size, Parts parts) {
  auto thread = std::make_unique<Thread>(0, size, std::move(parts));
  thread->listen();
  return std::unique_ptr<Lifeline>(new Lifeline(std::move(thread)));
}

std::unique_ptr<Lifeline> Lifeline::join(int rank, const std::string& invitation, Parts parts) {
  const milliseconds timeout = parts.timeout;
  auto thread = std::make_unique<Thread>(rank, 0, std::move(parts));
  thread->add_peer(0, connect_to_host(rank, invitation, timeout));
  return std::unique_ptr<Lifeline>(new Lifeline(std::move(thread)));
}

const std::string& Lifeline::invitation() const {
  return thread_->invitation();
}

void Lifeline::goodbye() {
  thread_->ask_to_leave("bye");
}

void Lifeline::fail(const std::string& why) {
  thread_->ask_to_leave("fail " + why);
}

std::optional<std::string> Lifeline::lost(Deadline deadline) {
  return thread_->lost(deadline);
}

std::unique_ptr<Lifeline> make_lifeline(Communicator& communicator, Lifeline::Parts parts) {
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
      lifeline = Lifeline::host(communicator.size(), parts);
      invitation = lifeline->invitation();
    });
  }
  invitation = broadcast_text(communicator, invitation, 0);
  if (communicator.rank() > 0 && !invitation.empty()) {
    attempt([&] { lifeline = Lifeline::join(communicator.rank(), invitation, parts); });
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

}  // namespace thinwire
