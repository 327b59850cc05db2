#include "collectives/net/call.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "collectives/base/error.h"

namespace thinwire::net {
namespace {

// An attempt that takes longer is given up for a new one, as the door gives up its guests.
constexpr std::chrono::seconds kLongestAttempt{10};
constexpr std::chrono::milliseconds kShortestPause{20};
constexpr std::chrono::milliseconds kLongestPause{200};

// One address, tried again and again.
class Line {
 public:
  Line(const Address& address, const JobIdentity& identity, const Introduction& who)
      : address_(&address), identity_(&identity), who_(who) {}

  bool open() const { return socket_.open(); }
  // Of the last attempt that ended; empty before.
  const std::string& reason() const { return reason_; }
  // Another attempt would end as this one.
  bool is_final() const { return final_; }
  bool nobody_listens() const { return !open() && nobody_listens_; }
  Descriptor take() { return std::move(socket_); }

  // Begins an attempt if it is time to, and says what to wait for.
  pollfd begin() {
    if (!open() && !final_ && Clock::now() >= next_) {
      side_.emplace(*identity_, who_);
      connected_ = false;
      bytes_ = 0;
      began_ = Clock::now();
      socket_ = begin_connect(*address_);
      if (!open()) lose(errno);
    }
    return {socket_.get(), static_cast<short>(connected_ ? POLLIN : POLLOUT), 0};
  }

  // True once this rank is let in.
  bool go_on(int revents) {
    if (!open()) return false;
    if (revents != 0) advance();
    if (open() && side_->let_in()) return true;
    if (open() && Clock::now() - began_ > kLongestAttempt) end("no answer in time");
    return false;
  }

 private:
  void advance() {
    if (!connected_) {
      const int code = connect_error(socket_);
      if (code != 0) return lose(code);
      connected_ = true;
      return say(side_->hello());
    }
    const ssize_t got =
        ::recv(socket_.get(), heard_.data() + bytes_, side_->wants() - bytes_, MSG_DONTWAIT);
    if (got < 0 && again(errno)) return;
    if (got < 0) return lose(errno);
    if (got == 0) return end("it closed the connection");
    bytes_ += static_cast<std::size_t>(got);
    if (bytes_ < side_->wants()) return;
    const std::string answer = side_->hear({heard_.data(), std::exchange(bytes_, 0)});
    const Refusal refusal = side_->refusal();
    if (refusal == Refusal::none) return answer.empty() ? void() : say(answer);
    // A rank of ours has said no; anybody else may be gone when it comes.
    final_ = refusal != Refusal::no_rank;
    end(sentence(refusal, *identity_, who_));
  }
  void say(const std::string& text) {
    const ssize_t sent =
        ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent != std::ssize(text)) lose(sent < 0 ? errno : EPIPE);
  }
  void lose(int code) {
    final_ = code == EMFILE || code == ENFILE;
    end(error_text(code) + (final_ ? " (raise ulimit -n)" : ""));
    nobody_listens_ = code == ECONNREFUSED;
  }
  void end(const std::string& reason) {
    reason_ = reason;
    nobody_listens_ = false;
    socket_.reset();
    next_ = Clock::now() + pause_;
    pause_ = std::min(2 * pause_, kLongestPause);
  }

  const Address* address_;
  const JobIdentity* identity_;
  Introduction who_;
  Descriptor socket_;
  std::optional<GuestSide> side_;  // of the attempt
  bool connected_ = false;
  std::array<char, 128> heard_{};
  std::size_t bytes_ = 0;
  Clock::time_point began_{};
  Clock::time_point next_{};
  std::chrono::milliseconds pause_ = kShortestPause;
  std::string reason_;
  bool nobody_listens_ = false;
  bool final_ = false;
};

}  // namespace

Descriptor call(const std::vector<Address>& addresses, const JobIdentity& identity,
                const Introduction& who, Deadline deadline, const std::function<void()>& check) {
  std::vector<Line> lines;
  for (const Address& address : addresses) lines.emplace_back(address, identity, who);
  for (;;) {
    std::vector<pollfd> polled;
    for (Line& line : lines) polled.push_back(line.begin());
    check();
    ::poll(polled.data(), polled.size(), std::min(poll_timeout(deadline), 20));
    for (std::size_t i = 0; i < lines.size(); ++i) {
      if (lines[i].go_on(polled[i].revents)) return lines[i].take();
    }
    const auto all = [&](auto holds) { return std::all_of(lines.begin(), lines.end(), holds); };
    const auto first =
        std::find_if(lines.begin(), lines.end(), [](const Line& line) { return line.is_final(); });
    // What one address says is final once no other one may still let this rank in.
    if (first != lines.end() && all([](const Line& line) { return !line.open(); })) {
      throw PeerLost(first->reason());
    }
    const bool nobody = all([](const Line& line) { return line.nobody_listens(); });
    const bool may_start_later = who.role == Role::meeting;
    if ((nobody && !may_start_later) || Clock::now() >= deadline) {
      // Somebody's answer says more than that there was none elsewhere.
      const auto answer = std::find_if(lines.begin(), lines.end(),
                                       [](const Line& line) { return !line.reason().empty(); });
      throw PeerLost(answer == lines.end() ? "no answer in time" : answer->reason());
    }
  }
}

}  // namespace thinwire::net
