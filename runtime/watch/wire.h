// Sockets that never block, for the lifeline.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace thinwire::watch {

// A file descriptor that is closed with its object.
class Descriptor {
 public:
  explicit Descriptor(int value = -1) : value_(value) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      value_ = std::exchange(other.value_, -1);
    }
    return *this;
  }
  int get() const { return value_; }
  bool open() const { return value_ >= 0; }
  void reset();

 private:
  int value_;
};

// Lines of text over one TCP connection. Never blocks, never throws: an error closes it.
class Wire {
 public:
  Wire() = default;
  explicit Wire(Descriptor socket) : socket_(std::move(socket)) {}

  int descriptor() const { return socket_.get(); }
  bool open() const { return socket_.open(); }
  bool wants_to_write() const { return !unsent_.empty(); }
  void close() { socket_.reset(); }

  // Appends a line, whose line breaks become spaces, and sends what the system takes.
  void send(std::string line);
  void flush();
  // No more lines will come from here; the other end sees that after the last one.
  void finish_sending();
  // The whole lines that came; what the peer sent before it closed still arrives.
  std::vector<std::string> receive();

 private:
  Descriptor socket_;
  std::string unsent_;
  std::string partial_;
};

// A socket that listens on a free port of every IPv4 address; throws `IoError`.
Descriptor listen_anywhere();
std::uint16_t port_of(const Descriptor& listener);
// The next connection that waits there; not open if there is none.
Descriptor accept_from(const Descriptor& listener);
// A connection being made: writable once it is, or has failed. Not open if it failed at once.
Descriptor begin_connect(const std::string& address, std::uint16_t port);
// The machine's IPv4 addresses that are up, loopback last.
std::vector<std::string> own_addresses();

}  // namespace thinwire::watch
