#include "collectives/mpi/work.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/mpi/pending.h"

namespace thinwire::mpi {
namespace {

using namespace std::chrono_literals;

class MpiWork final : public Work {
 public:
  MpiWork(std::shared_ptr<Membership> group, Operation call)
      : Work(group->link->options().timeout),
        group_(std::move(group)),
        record_(call),
        sequence_(link().begin(record_)),
        pending_(std::make_unique<Pending>(std::move(call), rank(), size(), how_to_transfer())),
        underway_(static_cast<std::size_t>(size() * Transfers::kStreams)) {}

  ~MpiWork() override {
    if (done_ || !pending_) return;
    abandon({FailureKind::lost,
             fmt::format("rank {} dropped {} without waiting for it", link().rank(),
                         record_.describe()),
             sequence_});
  }

  using Work::wait;
  void wait(Deadline deadline) override {
    if (done_) return;
    try {
      wait_until_done(deadline);
    } catch (const RanksDisagree& error) {
      abandon({FailureKind::disagree, error.what(), sequence_});
      throw;
    } catch (const PeerLost& error) {
      abandon({FailureKind::lost, error.what(), sequence_});
      throw;
    }
  }

  std::int64_t bytes_sent() const override { return bytes_sent_; }

  // Posts the first messages, apart from the constructor, so that `abandon` looks after what was
  // posted before a failure.
  void start() {
    try {
      post_what_may_go();
    } catch (const PeerLost& error) {
      abandon({FailureKind::lost, error.what(), sequence_});
      throw;
    }
  }

 private:
  static constexpr int kYields = 50;
  // When nothing has moved for so long, the peers are told in which operation this rank waits.
  static constexpr auto kStall = 50ms;
  // Each piece of a sum that goes round a ring costs a handshake, and with pieces of 64 KiB that
  // showed at 100 Mbit/s.
  static constexpr std::int64_t kPieceBytes = 1 << 18;
  // So many messages of a stream are posted at once, in each direction.
  static constexpr int kWindow = 16;

  // Of one stream between this rank and a peer: messages in flight.
  struct Underway {
    int sends = 0;
    int receives = 0;
  };

  Link& link() const { return *group_->link; }
  int rank() const { return link().rank(); }
  int size() const { return link().size(); }
  Underway& underway(int peer, int stream) {
    return underway_[static_cast<std::size_t>(peer * Transfers::kStreams + stream)];
  }

  TransferOptions how_to_transfer() const {
    const std::int64_t most = link().options().max_message_bytes;
    return {most, std::min(kPieceBytes, most), EmptyShares::travel};
  }

  void wait_until_done(Deadline deadline) {
    int polls = 0;
    bool told = false;
    Clock::time_point still_since;
    while (!done_) {
      link().throw_if_ended(sequence_);
      if (progress()) {
        polls = 0;
        continue;
      }
      if (++polls <= kYields) {
        sched_yield();
        continue;
      }
      const auto now = Clock::now();
      if (polls == kYields + 1) still_since = now;
      link().hear();
      link().miss(peers(), sequence_, record_);
      if (!told && now - still_since >= kStall) {
        told = true;
        link().tell_stalled(peers(), sequence_, record_);
      }
      link().throw_if_ended(sequence_);
      if (now >= deadline) {
        throw PeerLost(fmt::format("{} timed out on rank {}: {}; see why, or raise the timeout",
                                   record_.describe(), rank(), missing()));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(std::min(20 * (polls - kYields), 200)));
    }
  }

  // Lets go of the operation. That ends the group, as its other ranks may have sent what nobody
  // will receive.
  void abandon(const Failure& failure) {
    if (!pending_) return;
    link().end(failure);
    if (pending_->let_go()) {
      pending_.reset();
    } else {
      [[maybe_unused]] const Pending* leaked = pending_.release();
    }
  }

  // Whom this rank waits for. While it waits for messages of the first stream these are the ranks
  // that are late: what others send in the second may depend on the same ones.
  std::set<int> peers() const {
    std::set<int> peers;
    int lowest = Transfers::kStreams;
    for (const Request& request : pending_->requests) {
      if (request.stream > lowest) continue;
      if (request.stream < lowest) peers.clear();
      lowest = request.stream;
      peers.insert(request.peer);
    }
    return peers;
  }

  std::string missing() const {
    if (pending_->transfers->goes_round()) {
      return fmt::format("nothing more comes from or goes to rank {}, which may itself be waiting",
                         fmt::join(peers(), " or "));
    }
    return fmt::format("rank {} did not take part", fmt::join(peers(), ", "));
  }

  // Tells the plan which messages have ended, and posts those that may go now. False if none have
  // ended.
  bool progress() {
    auto& handles = pending_->handles;
    auto& requests = pending_->requests;
    if (handles.empty()) {
      finish();
      return true;
    }
    ended_.resize(handles.size());
    statuses_.resize(handles.size());
    int count = 0;
    const int code = MPI_Testsome(static_cast<int>(handles.size()), handles.data(), &count,
                                  ended_.data(), statuses_.data());
    if (code != MPI_ERR_IN_STATUS) mpi_check(code);
    if (count == 0) return false;
    finished_.clear();
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      const Request& request = requests[static_cast<std::size_t>(ended_[i])];
      check_message(request, statuses_[i], code == MPI_ERR_IN_STATUS);
      finished_.push_back(request);
    }
    std::size_t kept = 0;
    for (std::size_t i = 0; i < handles.size(); ++i) {
      if (handles[i] == MPI_REQUEST_NULL) continue;
      handles[kept] = handles[i];
      requests[kept++] = requests[i];
    }
    handles.resize(kept);
    requests.resize(kept);
    for (const auto& [direction, peer, stream, message] : finished_) {
      if (direction == Direction::send) {
        --underway(peer, stream).sends;
        pending_->transfers->sent(peer, stream, message);
      } else {
        --underway(peer, stream).receives;
        pending_->transfers->received(peer, stream, message);
      }
    }
    post_what_may_go();
    return true;
  }

  // Throws if what came is not what was expected. Tags have few bits, so they keep most messages of
  // other operations out, but not all.
  void check_message(const Request& request, const MPI_Status& status, bool may_have_failed) const {
    const std::int64_t expected = request.message.bytes;
    std::string sent;
    if (may_have_failed && status.MPI_ERROR != MPI_SUCCESS) {
      int what = MPI_SUCCESS;
      MPI_Error_class(status.MPI_ERROR, &what);
      if (what != MPI_ERR_TRUNCATE) mpi_check(status.MPI_ERROR);
      sent = fmt::format("more than {}", expected);
    } else if (request.direction == Direction::receive) {
      int bytes = 0;
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      if (bytes == expected) return;
      sent = std::to_string(bytes);
    } else {
      return;
    }
    throw RanksDisagree(
        fmt::format("rank {} sent {} bytes in one message where rank {} expected {} in {}; every "
                    "rank must call the same operations in the same order",
                    request.peer, sent, rank(), expected, record_.describe()));
  }

  MPI_Request* new_handle(const Request& request) {
    pending_->handles.push_back(MPI_REQUEST_NULL);
    pending_->requests.push_back(request);
    return &pending_->handles.back();
  }

  void send(int peer, int stream, const Transfers::Message& message) {
    const int tag = link().tag(sequence_, record_.towards(peer).giving(), stream);
    bytes_sent_ += message.bytes;
    ++underway(peer, stream).sends;
    mpi_check(MPI_Isend(message.data, static_cast<int>(message.bytes), MPI_BYTE, peer, tag,
                        link().comm(), new_handle({Direction::send, peer, stream, message})));
  }

  void receive(int peer, int stream, const Transfers::Message& message) {
    const int tag = link().tag(sequence_, record_.towards(peer).taking(), stream);
    ++underway(peer, stream).receives;
    mpi_check(MPI_Irecv(message.data, static_cast<int>(message.bytes), MPI_BYTE, peer, tag,
                        link().comm(), new_handle({Direction::receive, peer, stream, message})));
  }

  // Posts the messages that may go now. Posting one may make another ready.
  void post_what_may_go() {
    for (bool posted = true; posted;) {
      posted = false;
      for (int stream = 0; stream < Transfers::kStreams; ++stream) {
        // Starting behind oneself spreads the load: no two ranks send to the same peer first.
        for (int step = 1; step < size(); ++step) {
          posted = post((rank() + step) % size(), stream) || posted;
        }
      }
    }
  }

  bool post(int peer, int stream) {
    Transfers& transfers = *pending_->transfers;
    bool posted = false;
    while (underway(peer, stream).receives < kWindow) {
      const auto next = transfers.next_to_receive(peer, stream);
      if (!next) break;
      receive(peer, stream, *next);
      posted = true;
    }
    while (underway(peer, stream).sends < kWindow) {
      const auto next = transfers.next_to_send(peer, stream);
      if (!next) break;
      send(peer, stream, *next);
      posted = true;
    }
    return posted;
  }

  // No message is in flight any more.
  void finish() {
    check(pending_->transfers->done(), "an operation has a message in flight until it is done");
    if (pending_->result.defined()) {
      std::memcpy(pending_->result.data_ptr(), pending_->call.output.data_ptr(),
                  pending_->result.nbytes());
    }
    done_ = true;
  }

  std::shared_ptr<Membership> group_;
  CallRecord record_;
  std::int64_t sequence_;
  std::unique_ptr<Pending> pending_;
  bool done_ = false;
  std::vector<Underway> underway_;    // by peer and stream
  std::vector<int> ended_;            // scratch of `progress`
  std::vector<MPI_Status> statuses_;  // scratch of `progress`
  std::vector<Request> finished_;     // scratch of `progress`
  std::int64_t bytes_sent_ = 0;
};

}  // namespace

std::unique_ptr<Work> start_work(std::shared_ptr<Membership> group, Operation call) {
  auto work = std::make_unique<MpiWork>(std::move(group), std::move(call));
  work->start();
  return work;
}

}  // namespace thinwire::mpi
