#include "collectives/sockets/store_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/base/thread.h"

namespace thinwire::sockets {
namespace {

using namespace std::chrono_literals;

// Where rank 0 is, as numbers: an IPv6 address, or an IPv4 one mapped into it (2), that a rank of
// this job says so (4), and the port, which is 0 until all the others are there.
using Numbers = std::array<std::int64_t, 7>;
constexpr std::size_t kPort = 6;

// A MAC of the job's key over address and port.
std::array<std::int64_t, 4> proof_of(const Numbers& numbers, const net::JobIdentity& identity) {
  std::string text = "place " + identity.job;
  for (const std::size_t i : {std::size_t{0}, std::size_t{1}, kPort}) {
    text.append(reinterpret_cast<const char*>(&numbers[i]), sizeof numbers[i]);
  }
  const auto mac = net::authenticate(identity.key, text);
  std::array<std::int64_t, 4> proof;
  std::memcpy(proof.data(), mac.data(), mac.size());
  return proof;
}

Numbers numbers_of(const Contact& contact, const net::JobIdentity& identity) {
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
  Numbers numbers{};
  numbers[kPort] = contact.port;
  std::memcpy(numbers.data(), bytes.data(), 16);
  std::ranges::copy(proof_of(numbers, identity), numbers.begin() + 2);
  return numbers;
}

// Nothing where the numbers are no address that a rank of this job has left.
std::optional<Contact> contact_of(const Numbers& numbers, const net::JobIdentity& identity) {
  if (numbers[kPort] < 1 || numbers[kPort] > 65535) return std::nullopt;
  if (!std::ranges::equal(proof_of(numbers, identity), std::span(numbers).subspan(2, 4))) {
    return std::nullopt;
  }
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
  return Contact{net::numeric(address), static_cast<int>(numbers[kPort])};
}

// Looks, some milliseconds apart, until what cannot be believed is taken for somebody else's.
constexpr int kMostUnbelieved = 20;

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
    const Numbers numbers = numbers_of(contact, options_.identity);
    ask([store = store_, keys = keys(), numbers] {
      // An earlier start under the same name may have left its place.
      const auto set = [&](std::size_t i, std::int64_t value) {
        store->client->add(keys[i], value - store->client->add(keys[i], 0));
      };
      set(kPort, 0);
      for (std::size_t i = 0; i < keys.size(); ++i) set(i, numbers[i]);
    });
  }

  std::optional<Contact> look_up() override {
    const auto numbers = std::make_shared<Numbers>();
    ask([store = store_, keys = keys(), numbers] {
      for (std::size_t i = keys.size(); i-- > 0;) {
        // Adding nothing reads a number: unlike a value it cannot be longer than eight bytes.
        (*numbers)[i] = store->client->add(keys[i], 0);
        if ((*numbers)[kPort] == 0) return;
      }
    });
    if ((*numbers)[kPort] == 0) return std::nullopt;
    auto contact = contact_of(*numbers, options_.identity);
    // It may be halfway through another place.
    if (!contact && ++unbelieved_ < kMostUnbelieved) return std::nullopt;
    if (!contact) {
      throw PeerLost(
          fmt::format("what the store at {} holds for rank 0 is no address that it left there; see "
                      "who else writes "
                      "into that store, and give all ranks the same secret",
                      place()));
    }
    return contact;
  }

 private:
  struct Store {
    std::unique_ptr<c10d::TCPStore> client;
  };

  std::array<std::string, kPort + 1> keys() const {
    std::array<std::string, kPort + 1> keys;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] = fmt::format("thinwire/{}/{}", options_.identity.job, i);
    }
    return keys;
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
      check_stop();
      question->answered.wait_until(lock, std::min(deadline_, Clock::now() + 100ms));
    }
    if (question->problem) throw no_answer(*question->problem);
  }

  void check_stop() const {
    if (!options_.stop_requested || !options_.stop_requested()) return;
    throw Error(ExitCode::stopped_with_checkpoint,
                "stopped on request before the ranks had met; there is no checkpoint yet");
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
    std::string reason;
    for (;;) {
      const bool last = Clock::now() >= deadline_;
      try {
        net::connect_to(options_.meet_host, options_.meet_port,
                        std::min(deadline_, Clock::now() + 500ms));
        return;
      } catch (const Error& error) {  // also that the host has no name yet
        // The last attempt has no time for an answer.
        if (!last || reason.empty()) reason = error.what();
      }
      if (last) throw no_answer(reason);
      check_stop();
      std::this_thread::sleep_for(50ms);
    }
  }

  const SocketOptions options_;
  const Deadline deadline_;
  const std::shared_ptr<Store> store_;  // a thread that is stuck keeps it
  int unbelieved_ = 0;                  // looks that found no place of ours
};

}  // namespace

std::unique_ptr<Directory> open_store(const SocketOptions& options, Deadline deadline) {
  return std::make_unique<StoreDirectory>(options, deadline);
}

}  // namespace thinwire::sockets
