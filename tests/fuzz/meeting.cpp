// What ranks say to each other before they are joined, from a stranger.
//
// Input: which message (1 byte), then its bytes, cut or filled with zeros to its size.
#include <cstdint>
#include <cstring>
#include <string>

#include "collectives/base/error.h"
#include "collectives/net/handshake.h"
#include "collectives/sockets/rendezvous.h"

namespace thinwire {
namespace {

const net::JobIdentity& identity() {
  static const net::JobIdentity one{net::key_from_secret("sixteen letters"), "job", 5};
  return one;
}

std::string sized(const std::string& bytes, std::size_t size) {
  std::string text = bytes;
  text.resize(size);
  return text;
}

// Whatever a stranger says, nobody lets him in.
void as_guest(const std::string& bytes) {
  net::HostSide host(identity(), 1);
  bool asked = false;
  const auto expected = [&](const net::Introduction&) { return asked = true; };
  for (std::size_t at = 0; host.wants() > 0;) {
    const std::size_t wants = host.wants();
    const std::string answer =
        host.hear(sized(at < bytes.size() ? bytes.substr(at) : "", wants), expected);
    check(answer.size() <= 48, "an answer is short");
    at += wants;
  }
  check(!host.let_in() && !asked, "nobody is let in without the key");
  check(host.refusal() != net::Refusal::none, "and it is known why");
  check(!name(host.refusal()).empty(), "in words");
}

// A guest of ours whose host is a stranger.
void as_host(const std::string& bytes) {
  net::GuestSide guest(identity(), {net::Role::data, 2, 1});
  for (std::size_t at = 0; guest.wants() > 0;) {
    const std::size_t wants = guest.wants();
    guest.hear(sized(at < bytes.size() ? bytes.substr(at) : "", wants));
    at += wants;
  }
  check(!guest.let_in(), "a host without the key is not believed");
  check(!sentence(guest.refusal(), identity(), {}).empty(), "and it is known why");
}

void as_contact(const std::string& bytes) {
  for (const std::string& text : {bytes, sized(bytes, sockets::kContactBytes)}) {
    const auto contact = sockets::parse_contact(text);
    if (!contact) continue;
    check(sockets::write_contact(*contact) == text, "a contact is written as it was read");
  }
}

void as_header(const std::string& bytes) {
  sockets::MeetingHeader header;
  const std::string text = sized(bytes, sizeof header);
  std::memcpy(&header, text.data(), sizeof header);
  if (!plausible(header, 5)) return;
  check(header.bytes <= 5 * sockets::kContactBytes || header.bytes <= sockets::kMeetingText,
        "what follows is bounded");
}

}  // namespace
}  // namespace thinwire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      thinwire::as_guest(bytes);
      break;
    case 1:
      thinwire::as_host(bytes);
      break;
    case 2:
      thinwire::as_contact(bytes);
      break;
    default:
      thinwire::as_header(bytes);
  }
  return 0;
}
