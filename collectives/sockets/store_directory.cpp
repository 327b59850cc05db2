#include "collectives/sockets/store_directory.h"

#include <fmt/format.h>

#include <cerrno>
#include <thread>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "runtime/base/error.h"

namespace thinwire::sockets {
namespace {

using namespace std::chrono_literals;

// The store's errors come in our words; its own carry stack traces.
class StoreDirectory final : public Directory {
 public:
  StoreDirectory(const SocketOptions& options, Deadline deadline)
      : options_(options), store_(open(deadline)) {}

  void publish(int rank, const std::string& contact) override {
    const std::vector<std::uint8_t> bytes(contact.begin(), contact.end());
    ask([&] { store_->set(key(rank), bytes); });
  }

  std::optional<std::string> look_up(int rank) override {
    std::optional<std::string> contact;
    ask([&] {
      if (!store_->check({key(rank)})) return;
      const std::vector<std::uint8_t> bytes = store_->get(key(rank));
      contact = std::string(bytes.begin(), bytes.end());
    });
    return contact;
  }

 private:
  bool serves() const { return options_.store == StoreHost::rank_zero && options_.rank == 0; }
  std::string key(int rank) const { return fmt::format("{}/sockets/{}", options_.prefix, rank); }
  std::string place() const {
    return fmt::format("{}:{}", options_.store_host, options_.store_port);
  }

  template <typename Question>
  void ask(Question question) const {
    try {
      question();
    } catch (const c10::Error&) {
      throw PeerLost(fmt::format(
          "the store at {} does not answer any more; see the output of {}", place(),
          options_.store == StoreHost::rank_zero ? "rank 0, which runs it" : "whoever runs it"));
    }
  }

  PeerLost no_answer(const std::string& why) const {
    return PeerLost(fmt::format(
        "the store at {} does not answer ({}); see whether {} runs there and the address is right",
        place(), why, options_.store == StoreHost::rank_zero ? "rank 0" : "the launcher"));
  }

  // Rank 0 may start later than this one. TCPStore's own retries fill the log with stack traces, so
  // it is asked only once somebody listens.
  void await_server(Deadline deadline) const {
    for (;;) {
      try {
        connect_to(options_.store_host, options_.store_port, deadline);
        return;
      } catch (const PeerLost& error) {
        if (Clock::now() >= deadline) throw no_answer(error.what());
      }
      std::this_thread::sleep_for(50ms);
    }
  }

  Descriptor listen_for_store() const {
    const int family = resolve(options_.store_host, options_.store_port).front().family();
    Descriptor listener = listen_anywhere(family, options_.store_port);
    if (listener.get() >= 0) return listener;
    throw Error(ExitCode::peer_lost,
                fmt::format("rank 0 cannot run the store at port {} of this machine: {}; choose "
                            "another port",
                            options_.store_port, error_text(errno)));
  }

  std::unique_ptr<c10d::TCPStore> open(Deadline deadline) const {
    c10d::TCPStoreOptions store;
    store.port = static_cast<std::uint16_t>(options_.store_port);
    store.waitWorkers = false;
    store.timeout = options_.timeout;
    if (serves()) {
      store.isServer = true;
      store.useLibUV = false;  // which does not take every listener
      // A listener that is given is the store's from here on, whatever happens.
      store.masterListenFd = listen_for_store().release();
    } else {
      await_server(deadline);
    }
    try {
      return std::make_unique<c10d::TCPStore>(options_.store_host, store);
    } catch (const c10::Error& error) {
      const std::string why = error.what_without_backtrace();
      throw no_answer(why.substr(0, why.find('\n')));
    }
  }

  const SocketOptions options_;
  std::unique_ptr<c10d::TCPStore> store_;
};

}  // namespace

std::unique_ptr<Directory> open_store(const SocketOptions& options, Deadline deadline) {
  return std::make_unique<StoreDirectory>(options, deadline);
}

}  // namespace thinwire::sockets
