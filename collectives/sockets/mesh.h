// The connections between all ranks of a job, and the operations that travel over them.
#pragma once

#include <sys/uio.h>

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
#include "collectives/sockets/pending_operation.h"
#include "collectives/sockets/rendezvous.h"

namespace thinwire::sockets {

// Ranks of the job that act together. Guarded by the mesh; everything but the end is fixed.
struct Group {
  GroupId id;
  std::vector<int> members;  // ranks in the job, by place in the group
  int rank = 0;              // this rank's place
  Group* parent = nullptr;
  std::uint64_t posted = 0;  // operations so far
  std::optional<Failure> failure;
  // Members that have left, by their ranks in the job: how many operations they have called.
  std::map<int, std::int64_t> left;

  // Does the operation of this number fail?
  bool fails(std::uint64_t sequence) const;
  // Its own end, or that of a group it was split from.
  const Failure* ended() const;
  // The place of a rank of the job, or -1.
  int place_of(int job_rank) const;
};

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
  // The call of an operation that this rank has not called yet, with the bytes that came along.
  struct Early {
    FrameHeader header;
    std::vector<char> payload;
  };
  // The frame that is being written, and how far.
  struct Writing {
    FrameHeader header;
    Transfers::Message message;  // of the operation
    const char* payload = nullptr;
    std::size_t written = 0;  // of header and payload together
    std::shared_ptr<PendingOperation> operation;
    int member = 0;
    std::vector<char> kept;  // the payload, once its operation was given up
    bool active = false;
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
    Writing writing;
    Reading reading;
    std::map<OperationId, Early> early;
    std::map<OperationId, std::int64_t> ahead;  // sent for operations the peer has not called
    std::int64_t bytes_ahead = 0;
    std::vector<char> notices;  // not complete yet
    bool can_read = true;
    bool can_write = true;
    bool full = false;  // the kernel takes no more at the moment
    bool said_goodbye = false;
    bool lost = false;
  };

  Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }
  template <typename Body>
  void each_peer(Body body);

  // One look at all sockets, for at most until `deadline`, and all that can be done then.
  void progress(std::unique_lock<std::mutex>& lock, Deadline deadline);
  void wake();

  void send_frames(int rank);
  bool start_frame(int rank);
  bool has_frame(int rank);
  void write_frame(Peer& to, const std::shared_ptr<PendingOperation>& operation, int member,
                   FrameKind kind, const Transfers::Message& message);
  void finish_frame(Peer& to);
  void stop_writing(Peer& to);

  void receive_frames(int rank);
  PendingOperation::Room room_for_payload(int rank);
  void take_payload(Reading& reading, std::int64_t bytes);
  void begin_frame(int rank);
  bool accept(int rank, Group& group, PendingOperation& operation, const FrameHeader& header);
  void refuse(int rank, Group& group, std::uint64_t sequence, const std::string& what);
  void release_ahead(Peer& from, const OperationId& id);
  void adopt_early(Group& group, const std::shared_ptr<PendingOperation>& operation);

  void receive_notices(int rank);
  void send_notice(Peer& to, NoticeHeader header, const std::string& reason);
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
  // Never erased: a frame that comes late must find that its group was here.
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
