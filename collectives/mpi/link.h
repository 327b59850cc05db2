// A group over MPI on one rank: its MPI communicator, what its ranks tell each other beside the
// data, and how it ends.
#pragma once

#include <mpi.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <source_location>
#include <string>
#include <vector>

#include "collectives/failure.h"
#include "collectives/mpi/mpi_communicator.h"
#include "collectives/operation.h"

namespace thinwire::mpi {

// "MPI_ERR_TRUNCATE: message truncated"
std::string error_text(int code);

// Throws `PeerLost` unless `code` is MPI_SUCCESS.
void mpi_check(int code, const std::source_location& where = std::source_location::current());

class Link;

// All groups split off from one another. Looks after those that this rank has left and others have
// not: an MPI communicator may be freed only when nothing is sent over it any more.
class Family {
 public:
  // MPI_Finalize waits, for `timeout` at most, until nothing is under way in the family's groups.
  static std::shared_ptr<Family> make(std::chrono::milliseconds timeout);

  void opened(const std::shared_ptr<Link>& link);
  void left(std::shared_ptr<Link> link);
  // Frees the groups that all have left by now.
  void reap();

 private:
  explicit Family(std::chrono::milliseconds timeout) : timeout_(timeout) {}
  static int before_finalize(MPI_Comm comm, int key, void* family, void* unused);
  void end();

  const std::chrono::milliseconds timeout_;
  std::mutex mutex_;  // taken before that of a link
  std::vector<std::weak_ptr<Link>> open_;
  std::vector<std::shared_ptr<Link>> closing_;
};

// What the operations of one group share. Safe from any thread.
//
// Notices are small messages on a tag of their own: why the group failed, a goodbye, and what an
// operation is that has stalled, so that the peer can see whether it called the same. They are
// heard by whoever calls an operation or waits for one that does not move.
class Link : public std::enable_shared_from_this<Link> {
 public:
  // Takes `comm` over. A group that was split off ends with its parent.
  Link(MPI_Comm comm, const MpiOptions& options, std::shared_ptr<Link> parent,
       std::shared_ptr<Family> family);
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  MPI_Comm comm() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  const MpiOptions& options() const { return options_; }
  const std::shared_ptr<Family>& family() const { return family_; }

  // Numbers the next operation. Throws if the group has ended, or ends now, as a peer has said that
  // its operation of this number is another one.
  std::int64_t begin(const CallRecord& call);
  // The tag of an operation's messages of one stream. A message of another operation has another
  // tag, as far as there are bits for `what`.
  int tag(std::int64_t sequence, std::uint64_t what, int stream) const;

  // Ends the group here and on its other ranks. If it has ended before, the first failure stays the
  // one that is reported.
  void end(const Failure& failure);
  // For the operation of this number: has the group ended?
  void throw_if_ended(std::int64_t sequence) const;
  // Listens to notices of this group and of those that it was split from.
  void hear();
  // For an operation that waits for these ranks: ends the group if one of them has called another
  // operation, or if any rank has left before this one.
  void miss(const std::set<int>& peers, std::int64_t sequence, const CallRecord& call);
  // Tells these ranks which operation waits for them.
  void tell_stalled(const std::set<int>& peers, std::int64_t sequence, const CallRecord& call);

  // This rank calls no more operations and has no part in any that is in flight.
  void leave();
  // For a group that this rank has left: true once its MPI communicator is freed, or never can be.
  bool finished();

 private:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  static constexpr std::size_t kRemembered = 256;  // calls
  static constexpr std::size_t kTold = 16;         // of them, in a goodbye

  enum class NoticeKind : std::uint32_t { failure, goodbye, stalled };
  // `calls` summaries and `text` bytes follow.
  struct NoticeHeader {
    NoticeKind kind = NoticeKind::failure;
    FailureKind failure = FailureKind::lost;
    // In a failure the first operation that fails, in a goodbye how many were called, in a stall
    // the operation that has stalled.
    std::int64_t sequence = 0;
    std::uint32_t calls = 0;
    std::uint32_t text = 0;
  };
  struct Notice {
    std::vector<char> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  struct Goodbye {
    std::int64_t posted = 0;
    std::vector<CallSummary> calls;  // the last of them
  };
  struct Stalled {
    std::int64_t sequence = 0;
    CallSummary call;
  };

  bool has_ended() const { return ends_from_.load() != kNever; }
  bool note(const Failure& failure);
  void end_locked(const Failure& failure);
  void hear_locked();
  void take(int from, const std::vector<char>& bytes);
  void post(int peer, NoticeHeader header, const std::vector<CallSummary>& calls,
            const std::string& text);
  void drop_what_is_sent();
  const CallRecord& remembered(std::int64_t sequence) const {
    return calls_[static_cast<std::size_t>(sequence) % kRemembered];
  }
  std::optional<Failure> failure_of(int peer, std::int64_t sequence, const CallRecord& call) const;

  const MpiOptions options_;
  const std::shared_ptr<Link> parent_;
  const std::shared_ptr<Family> family_;
  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
  int sequence_bits_ = 0;
  int what_bits_ = 0;
  std::atomic<std::int64_t> ends_from_{kNever};  // the first operation that fails
  std::atomic<bool> somebody_left_{false};
  std::mutex mutex_;  // guards everything below
  Failure failure_;   // does not change once it is there
  bool left_ = false;
  std::int64_t posted_ = 0;
  std::array<CallRecord, kRemembered> calls_;
  std::vector<std::optional<Goodbye>> goodbyes_;  // by rank
  std::vector<std::optional<Stalled>> stalled_;   // by rank: in what this one has not called yet
  std::vector<std::unique_ptr<Notice>> notices_;  // MPI may still read them
};

// Held by a group's communicator and by its operations in flight. The rank leaves the group when
// the last of them goes.
struct Membership {
  explicit Membership(std::shared_ptr<Link> its_link) : link(std::move(its_link)) {}
  ~Membership() { link->leave(); }
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;

  const std::shared_ptr<Link> link;
};

}  // namespace thinwire::mpi
