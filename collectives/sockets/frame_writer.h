// The frame that is being written to one peer, and how far.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "collectives/net/socket.h"
#include "collectives/sockets/frame.h"
#include "collectives/sockets/pending_operation.h"

namespace thinwire::sockets {

class FrameWriter {
 public:
  // Is there a frame that is not written to its end?
  bool active() const { return active_; }
  // Whose message the frame carries; null where there is no frame, or its operation was given up.
  const std::shared_ptr<PendingOperation>& operation() const { return operation_; }

  // Begins a frame to `member` of the operation's group. A message without bytes: only a header.
  void begin(std::shared_ptr<PendingOperation> operation, int member, FrameKind kind,
             const Transfers::Message& message);

  enum class Outcome {
    finished,            // The frame is written, and its operation knows that.
    kernel_is_full,      // The kernel takes no more at the moment.
    peer_reads_no_more,  // The frame is dropped. Whether that matters is seen when it is known why.
  };
  struct Written {
    Outcome outcome = Outcome::finished;
    std::int64_t bytes = 0;
  };
  // Writes what the kernel takes at once.
  Written write(const net::Descriptor& socket);

  // The frame's operation was given up, and its memory may go. A frame that is half written goes on
  // with a copy of it, as the connection must stay in step for others.
  void let_go();

 private:
  void stop();

  bool active_ = false;
  FrameHeader header_;
  Transfers::Message message_;
  const char* payload_ = nullptr;
  std::size_t written_ = 0;  // of header and payload together
  std::shared_ptr<PendingOperation> operation_;
  int member_ = 0;
  std::vector<char> kept_;  // the payload, once its operation was given up
};

}  // namespace thinwire::sockets
