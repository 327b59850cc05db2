#include "collectives/sockets/store_directory.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "runtime/base/error.h"
#include "runtime/base/text.h"
#include "runtime/base/thread.h"

namespace thinwire::sockets {
namespace {

using namespace std::chrono_literals;

// An IPv6 address, or an IPv4 one mapped into it, as two numbers; the third is the port.
using Numbers = std::array<std::int64_t, 3>;

Numbers numbers_of(const Contact& contact) {
  const net::Address address = net::resolve(contact.address, contact.port).front();
  std::array<std::uint8_t, 16> bytes{};
  if (address.family() == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address.storage);
    std::memcpy(bytes.data(), &v6->sin6_addr, 16);
  } else {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address.storage);
    bytes[10] = bytes[11] = 0xff;
    std::memcpy(bytes.data() + 12, &v4->sin_addr, 4);
  }
  Numbers numbers{0, 0, contact.port};
  std::memcpy(numbers.data(), bytes.data(), 16);
  return numbers;
}

// Nothing where the numbers are no address.
std::optional<Contact> contact_of(const Numbers& numbers) {
  if (numbers[2] < 1 || numbers[2] > 65535) return std::nullopt;
  net::Address address;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(numbers.data());
  constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (std::memcmp(bytes, kMapped.data(), kMapped.size()) == 0) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
    v4->sin_family = AF_INET;
    std::memcpy(&v4->sin_addr, bytes + 12, 4);
    address.length = sizeof *v4;
  } else {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
    v6->sin6_family = AF_INET6;
    std::memcpy(&v6->sin6_addr, bytes, 16);
    address.length = sizeof *v6;
  }
  return Contact{net::numeric(address), static_cast<int>(numbers[2])};
}

// One thing that the store was asked, on a thread that nobody waits for longer than he wants: the
// store's own calls wait for as long as it likes.
struct Question {
  std::mutex mutex;
  std::condition_variable answered;
  bool done = false;
  std::optional<std::string> problem;
};

class StoreDirectory final : public Directory {
 public:
  StoreDirectory(const SocketOptions& options, Deadline deadline)
      : options_(options), deadline_(deadline), store_(std::make_shared<Store>()) {
    await_server();
    ask([store = store_, host = options_.meet_host, port = options_.meet_port,
         timeout = options_.timeout] {
      c10d::TCPStoreOptions client;
      client.port = static_cast<std::uint16_t>(port);
      client.waitWorkers = false;
      client.timeout = timeout;
      store->client = std::make_unique<c10d::TCPStore>(host, client);
    });
  }

  void publish(const Contact& contact) override {
    const Numbers numbers = numbers_of(contact);
    // The port last: with it the word is there.
    ask([store = store_, keys = keys(), numbers] {
      for (std::size_t i = 0; i < keys.size(); ++i) store->client->add(keys[i], numbers[i]);
    });
  }

  std::optional<Contact> look_up() override {
    const auto numbers = std::make_shared<Numbers>();
    ask([store = store_, keys = keys(), numbers] {
      for (std::size_t i = keys.size(); i-- > 0;) {
        // Adding nothing reads a number: unlike a value it cannot be longer than eight bytes.
        (*numbers)[i] = store->client->add(keys[i], 0);
        if ((*numbers)[i] == 0 && i + 1 == keys.size()) return;
      }
    });
    if ((*numbers)[2] == 0) return std::nullopt;
    auto contact = contact_of(*numbers);
    if (!contact) {
      throw PeerLost(fmt::format(
          "what the store at {} holds for rank 0 is no address; use another port or job id",
          place()));
    }
    return contact;
  }

 private:
  struct Store {
    std::unique_ptr<c10d::TCPStore> client;
  };

  std::array<std::string, 3> keys() const {
    const std::string prefix = "thinwire/" + options_.identity.job;
    return {prefix + "/high", prefix + "/low", prefix + "/port"};
  }
  std::string place() const { return fmt::format("{}:{}", options_.meet_host, options_.meet_port); }

  void ask(std::function<void()> action) const {
    const auto question = std::make_shared<Question>();
    make_thread([question, action = std::move(action)] {
      std::optional<std::string> problem;
      try {
        action();
      } catch (const std::exception& error) {
        problem = printable(without_stack(error.what()), 200);
      }
      const std::lock_guard lock(question->mutex);
      question->problem = std::move(problem);
      question->done = true;
      question->answered.notify_all();
    }).detach();
    std::unique_lock lock(question->mutex);
    while (!question->done) {
      if (Clock::now() >= deadline_) throw no_answer("no answer in time");
      if (options_.stop_requested && options_.stop_requested()) {
        throw Error(ExitCode::stopped_with_checkpoint,
                    "stopped on request before the ranks had met; there is no checkpoint yet");
      }
      question->answered.wait_until(lock, std::min(deadline_, Clock::now() + 100ms));
    }
    if (question->problem) throw no_answer(*question->problem);
  }

  PeerLost no_answer(const std::string& why) const {
    return PeerLost(
        fmt::format("the store at {} does not answer ({}); see whether the launcher runs there and "
                    "the address is right",
                    place(), why));
  }

  // TCPStore's own attempts fill the log with stack traces, so it is asked only once somebody
  // listens.
  void await_server() const {
    for (;;) {
      try {
        net::connect_to(options_.meet_host, options_.meet_port, deadline_);
        return;
      } catch (const PeerLost& error) {
        if (Clock::now() >= deadline_) throw no_answer(error.what());
      }
      std::this_thread::sleep_for(50ms);
    }
  }

  const SocketOptions options_;
  const Deadline deadline_;
  const std::shared_ptr<Store> store_;  // a thread that is stuck keeps it
};

}  // namespace

std::unique_ptr<Directory> open_store(const SocketOptions& options, Deadline deadline) {
  return std::make_unique<StoreDirectory>(options, deadline);
}

}  // namespace thinwire::sockets
