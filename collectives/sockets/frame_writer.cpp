#include "collectives/sockets/frame_writer.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace thinwire::sockets {

void FrameWriter::begin(std::shared_ptr<PendingOperation> operation, int member, FrameKind kind,
                        const Transfers::Message& message) {
  header_ = operation->header(member, kind);
  header_.bytes = static_cast<std::uint32_t>(message.bytes);
  message_ = message;
  payload_ = message.data;
  written_ = 0;
  operation_ = std::move(operation);
  member_ = member;
  active_ = true;
}

FrameWriter::Written FrameWriter::write(const net::Descriptor& socket) {
  constexpr std::size_t kHeader = sizeof(FrameHeader);
  std::array<iovec, 2> parts{};
  std::size_t count = 0;
  if (written_ < kHeader) {
    parts[count++] = {reinterpret_cast<char*>(&header_) + written_, kHeader - written_};
  }
  const std::size_t payload_written = std::max(written_, kHeader) - kHeader;
  if (payload_written < header_.bytes) {
    parts[count++] = {const_cast<char*>(payload_) + payload_written,
                      header_.bytes - payload_written};
  }
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = count;
  const ssize_t sent = ::sendmsg(socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0) {
    if (net::again(errno)) return {Outcome::kernel_is_full, 0};
    stop();
    return {Outcome::peer_reads_no_more, 0};
  }
  written_ += static_cast<std::size_t>(sent);
  if (written_ < kHeader + header_.bytes) return {Outcome::kernel_is_full, sent};
  if (operation_ && header_.bytes > 0) {
    operation_->sent(member_, stream_of(header_.kind), message_);
  }
  stop();
  return {Outcome::finished, sent};
}

void FrameWriter::let_go() {
  operation_.reset();
  if (written_ == 0) {
    active_ = false;
  } else if (payload_ != nullptr) {
    kept_.assign(payload_, payload_ + header_.bytes);
    payload_ = kept_.data();
  }
}

void FrameWriter::stop() {
  active_ = false;
  operation_.reset();
  kept_.clear();
}

}  // namespace thinwire::sockets
