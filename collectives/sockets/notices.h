// Notices: small messages on a connection of their own, so that none waits behind a tensor.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/net/socket.h"
#include "collectives/sockets/frame.h"

namespace thinwire::sockets {

struct Notice {
  NoticeHeader header;
  std::string text;  // printable
};

// Sends at once or not at all: notices are few and small, so one that does not fit goes to somebody
// who reads nothing any more.
void send_notice(const net::Descriptor& socket, NoticeHeader header, const std::string& text);

// What has come from one peer. He may send anything.
class NoticeReader {
 public:
  enum class Outcome { nothing, came, closed };
  // Reads what is there.
  Outcome read(const net::Descriptor& socket);
  // The next whole notice of what was read.
  std::optional<Notice> next();
  // What follows is no notice that this program sends; `next` gives no more.
  bool malformed() const { return malformed_; }

 private:
  std::vector<char> bytes_;
  bool malformed_ = false;
};

}  // namespace thinwire::sockets
