// Lines of a lifeline, of any bytes.
//
// Input: the bytes, as one connection brings them.
#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "runtime/watch/messages.h"
#include "runtime/watch/wire.h"

namespace thinwire {
namespace {

void try_line(const std::string& line) {
  const watch::Message message = watch::parse_message(line);
  for (const std::string& text :
       {message.text, message.activity.doing, message.activity.operation}) {
    check(text.size() < 2100 && printable(text, 2100) == text, "what is said can be shown");
  }
  if (message.kind != watch::Message::Kind::report) return;
  const Activity& activity = message.activity;
  check(describe(activity).size() < 1000, "an activity can be described");
  // What was cut would be cut again.
  if (activity.doing.size() > 150 || activity.operation.size() > 150) return;
  const watch::Message again = watch::parse_message(watch::report_line(activity));
  check(again.kind == message.kind && again.activity == activity, "a report is read back");
}

void try_input(const std::uint8_t* data, std::size_t size) {
  int ends[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0,
        "a pair of sockets");
  watch::Wire wire{net::Descriptor(ends[0])};
  net::Descriptor peer(ends[1]);
  check(::send(peer.get(), data, size, MSG_NOSIGNAL) == static_cast<ssize_t>(size),
        "an input fits into a socket");
  peer.reset();
  std::string heard;
  while (wire.open()) {
    for (const std::string& line : wire.receive()) {
      try_line(line);
      heard += line + '\n';
    }
  }
  const std::string said(reinterpret_cast<const char*>(data), size);
  check(said.substr(0, said.rfind('\n') + 1) == heard, "all whole lines arrive, in order");
}

}  // namespace
}  // namespace thinwire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thinwire::try_input(data, size);
  return 0;
}
