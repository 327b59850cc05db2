#include "collectives/sockets/notices.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "collectives/base/text.h"

namespace thinwire::sockets {
namespace {

constexpr std::size_t kNoticeText = 4000;

}  // namespace

void send_notice(const net::Descriptor& socket, NoticeHeader header, const std::string& text) {
  const std::string cut = text.substr(0, kNoticeText);
  header.bytes = static_cast<std::uint32_t>(cut.size());
  std::vector<char> bytes(sizeof header + cut.size());
  std::memcpy(bytes.data(), &header, sizeof header);
  std::copy(cut.begin(), cut.end(), bytes.begin() + sizeof header);
  [[maybe_unused]] const ssize_t sent =
      ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

NoticeReader::Outcome NoticeReader::read(const net::Descriptor& socket) {
  std::array<char, 4096> buffer;
  const ssize_t got = ::recv(socket.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (got < 0 && net::again(errno)) return Outcome::nothing;
  if (got <= 0) return Outcome::closed;
  bytes_.insert(bytes_.end(), buffer.data(), buffer.data() + got);
  return Outcome::came;
}

std::optional<Notice> NoticeReader::next() {
  Notice notice;
  NoticeHeader& header = notice.header;
  if (malformed_ || bytes_.size() < sizeof header) return {};
  std::memcpy(&header, bytes_.data(), sizeof header);
  malformed_ = !plausible(header) || header.bytes > kNoticeText;
  if (malformed_ || bytes_.size() < sizeof header + header.bytes) return {};
  notice.text = printable({bytes_.data() + sizeof header, header.bytes}, kNoticeText);
  bytes_.erase(bytes_.begin(),
               bytes_.begin() + static_cast<std::ptrdiff_t>(sizeof header + header.bytes));
  return notice;
}

}  // namespace thinwire::sockets
