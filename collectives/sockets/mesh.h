// The connections between all ranks of a job, and the operations that travel over them.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "collectives/sockets/frame.h"
#include "collectives/sockets/frame_writer.h"
#include "collectives/sockets/group.h"
#include "collectives/sockets/notices.h"
#include "collectives/sockets/pending_operation.h"
#include "collectives/sockets/rendezvous.h"

namespace thinwire::sockets {

// The whole job's network on one rank: shared by its communicator, all splits of that and their
// operations, which all progress together. Whoever waits moves the bytes of all; of several
// threads that wait one does. Safe from any thread.
class Mesh {
 public:
  Mesh(const SocketOptions& options, std::vector<Connections> connections);
  // Says goodbye and stays until the peers' kernels have what was sent to them, at most the
  // timeout.
  ~Mesh();
  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  const SocketOptions& options() const { return options_; }
  Group& world() { return *world_; }
  // A name for a group that this rank will lead.
  GroupId new_id();
  Group& add_group(GroupId id, std::vector<int> members, Group& parent);

  // Starts an operation: small messages and what the kernel takes at once go out.
  std::shared_ptr<PendingOperation> post(Group& group, Operation call);
  // Blocks in poll() until the operation is complete; throws when its group ends or the deadline
  // passes first.
  void wait(Group& group, PendingOperation& operation, Deadline deadline);
  // Ends a group here and, by a notice, on its other members.
  void abort(Group& group, Failure failure);
  // This rank calls no more operations of the group, and says so.
  void leave(Group& group);

 private:
  // A peer's call of an operation that this rank has not called yet, and the bytes that came with
  // it.
  struct Early {
    FrameHeader header;
    std::vector<char> payload;
  };
  // The frame that is being read, and how far. Payload without a destination is thrown away.
  struct Reading {
    std::array<char, sizeof(FrameHeader)> next{};  // header, as far as it came
    std::size_t next_bytes = 0;
    FrameHeader header;
    std::int64_t payload_left = 0;
    std::shared_ptr<PendingOperation> operation;
    int member = 0;
    Early* early = nullptr;
  };
  struct Peer {
    Connections sockets;
    FrameWriter writer;
    Reading reading;
    std::map<OperationId, Early> early;
    std::map<OperationId, std::int64_t> ahead;  // sent for operations the peer has not called
    std::int64_t bytes_ahead = 0;
    NoticeReader notices;
    bool can_read = true;
    bool can_write = true;
    bool full = false;  // the kernel takes no more at the moment
    bool said_goodbye = false;
    bool lost = false;
  };

  Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }
  template <typename Body>
  void each_peer(Body body);

  // Waits in poll() until a socket is ready, but not beyond `deadline`, and does all that can be
  // done then.
  void progress(std::unique_lock<std::mutex>& lock, Deadline deadline);
  void wake();

  void send_frames(int rank);
  bool start_frame(int rank);
  bool has_frame(int rank);

  void receive_frames(int rank);
  PendingOperation::Room room_for_payload(int rank);
  void take_payload(Reading& reading, std::int64_t bytes);
  void begin_frame(int rank);
  bool accept(int rank, Group& group, PendingOperation& operation, const FrameHeader& header);
  void refuse(int rank, Group& group, std::uint64_t sequence, const std::string& what);
  void release_ahead(Peer& from, const OperationId& id);
  void adopt_early(Group& group, const std::shared_ptr<PendingOperation>& operation);

  void receive_notices(int rank);
  void take_notice(int rank, const Notice& notice);
  void fail_world(const std::string& reason);
  void miss_those_who_left();

  bool end_group(Group& group, Failure failure);
  void tell_members(const Group& group);
  void drop_what_fails();
  void forget_complete();
  Group* find_group(GroupId id);
  std::shared_ptr<PendingOperation> find_operation(const OperationId& id);
  std::string timed_out(const Group& group, const PendingOperation& operation) const;

  const SocketOptions options_;
  const Descriptor wake_;
  std::mutex mutex_;  // guards everything below; not held in poll()
  std::condition_variable changed_;
  bool polling_ = false;
  std::vector<Peer> peers_;
  // A group is never erased: a frame that comes late must find that it existed.
  std::map<GroupId, std::unique_ptr<Group>> groups_;
  Group* world_ = nullptr;
  std::uint32_t names_ = 0;
  // What is known of groups that this rank does not know yet.
  std::map<GroupId, Failure> early_failures_;
  std::map<GroupId, std::map<int, std::int64_t>> early_left_;
  BlockPool pool_;
  std::vector<std::shared_ptr<PendingOperation>> pending_;  // in the order of the calls
  std::vector<char> waste_;
};

}  // namespace thinwire::sockets
