// A connection that never blocks, for the lifeline.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "collectives/net/socket.h"

namespace thinwire::watch {

// Lines of text over one TCP connection. Never blocks, never throws: an error closes it, and so
// does a line of more than 64 KiB.
class Wire {
 public:
  Wire() = default;
  explicit Wire(net::Descriptor socket) : socket_(std::move(socket)) {}

  int descriptor() const { return socket_.get(); }
  bool open() const { return socket_.open(); }
  bool wants_to_write() const { return !unsent_.empty(); }
  void close() { socket_.reset(); }

  // Appends a line, whose line breaks become spaces, and sends what the system takes.
  void send(std::string line);
  void flush();
  // No more lines will come from here; the other end sees that after the last one.
  void finish_sending();
  // The lines that have come whole, of at most 64 KiB at a time. Lines that the peer sent before it
  // closed still arrive.
  std::vector<std::string> receive();

 private:
  net::Descriptor socket_;
  std::string unsent_;
  std::string partial_;
};

}  // namespace thinwire::watch
