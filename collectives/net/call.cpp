#include "collectives/net/call.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <thread>
#include <utility>

#include "runtime/base/error.h"

namespace thinwire::net {
namespace {

using namespace std::chrono_literals;

// One attempt at one address.
class Attempt {
 public:
  Attempt(const Address& address, const JobIdentity& identity, const Introduction& who)
      : socket_(begin_connect(address)), side_(identity, who) {
    if (!socket_.open()) lose(errno);
  }

  bool open() const { return socket_.open(); }
  bool let_in() const { return side_.let_in(); }
  Refusal refusal() const { return side_.refusal(); }
  const std::string& reason() const { return reason_; }
  bool nobody_listens() const { return nobody_listens_; }
  bool out_of_files() const { return out_of_files_; }
  pollfd polled() const {
    return {socket_.get(), static_cast<short>(connected_ ? POLLIN : POLLOUT), 0};
  }
  Descriptor take() { return std::move(socket_); }

  // poll() says that there is something.
  void go_on() {
    if (!connected_) {
      const int code = connect_error(socket_);
      if (code != 0) return lose(code);
      connected_ = true;
      return say(side_.hello());
    }
    const ssize_t got =
        ::recv(socket_.get(), heard_.data() + bytes_, side_.wants() - bytes_, MSG_DONTWAIT);
    if (got < 0 && again(errno)) return;
    if (got < 0) return lose(errno);
    if (got == 0) return end("it closed the connection");
    bytes_ += static_cast<std::size_t>(got);
    if (bytes_ < side_.wants()) return;
    const std::string answer = side_.hear({heard_.data(), std::exchange(bytes_, 0)});
    if (side_.refusal() != Refusal::none) return end("");
    if (!answer.empty()) say(answer);
  }

 private:
  void say(const std::string& text) {
    const ssize_t sent =
        ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent != std::ssize(text)) lose(sent < 0 ? errno : EPIPE);
  }
  void lose(int code) {
    nobody_listens_ = code == ECONNREFUSED;
    out_of_files_ = code == EMFILE || code == ENFILE;
    end(error_text(code) + (out_of_files_ ? " (raise ulimit -n)" : ""));
  }
  void end(const std::string& reason) {
    reason_ = reason;
    socket_.reset();
  }

  Descriptor socket_;
  GuestSide side_;
  bool connected_ = false;
  bool nobody_listens_ = false;
  bool out_of_files_ = false;
  std::array<char, 128> heard_{};
  std::size_t bytes_ = 0;
  std::string reason_;
};

}  // namespace

Descriptor call(const std::vector<Address>& addresses, const JobIdentity& identity,
                const Introduction& who, Deadline deadline, const std::function<void()>& check) {
  std::string reason = "no answer in time";
  for (auto pause = 20ms;; pause = std::min(2 * pause, 200ms)) {
    std::vector<Attempt> attempts;
    for (const Address& address : addresses) attempts.emplace_back(address, identity, who);
    const auto any_open = [&] {
      return std::any_of(attempts.begin(), attempts.end(),
                         [](const Attempt& attempt) { return attempt.open(); });
    };
    while (any_open()) {
      check();
      if (Clock::now() >= deadline) throw PeerLost(reason);
      std::vector<pollfd> polled;
      for (const Attempt& attempt : attempts) polled.push_back(attempt.polled());
      ::poll(polled.data(), polled.size(), std::min(poll_timeout(deadline), 100));
      for (std::size_t i = 0; i < attempts.size(); ++i) {
        Attempt& attempt = attempts[i];
        if (polled[i].revents == 0 || !attempt.open()) continue;
        attempt.go_on();
        if (attempt.let_in()) return attempt.take();
      }
    }
    bool nobody_listens = true;
    for (const Attempt& attempt : attempts) {
      const Refusal refusal = attempt.refusal();
      if (refusal != Refusal::none && refusal != Refusal::no_rank) {
        throw PeerLost(sentence(refusal, identity, who));
      }
      reason = refusal == Refusal::none ? attempt.reason() : sentence(refusal, identity, who);
      if (attempt.out_of_files()) throw PeerLost(reason);
      nobody_listens = nobody_listens && attempt.nobody_listens();
    }
    check();
    if ((nobody_listens && who.role != Role::meeting) || Clock::now() >= deadline) {
      throw PeerLost(reason);
    }
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace thinwire::net
