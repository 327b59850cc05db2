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
        pending_(std::make_unique<Pending>(std::move(call))) {}

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

  // Posts the first messages. Apart from the constructor, so that `abandon` looks after what was
  // posted before a failure.
  void start() {
    try {
      post_first();
    } catch (const PeerLost& error) {
      abandon({FailureKind::lost, error.what(), sequence_});
      throw;
    }
  }

 private:
  static constexpr int kYields = 50;
  // So long may nothing move before the peers are told what this rank is waiting in.
  static constexpr auto kStall = 50ms;
  // Sums go round the ring in pieces of so many bytes, this many of them posted in each direction.
  // Each piece costs a handshake, and with pieces of 64 KiB that showed at 100 Mbit/s.
  static constexpr std::int64_t kPieceBytes = 1 << 18;
  static constexpr int kWindow = 16;

  Link& link() const { return *group_->link; }
  int rank() const { return link().rank(); }
  int size() const { return link().size(); }

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

  // Lets go of the operation, which ends the group: its other ranks may have sent what nobody will
  // receive.
  void abandon(const Failure& failure) {
    if (!pending_) return;
    link().end(failure);
    if (pending_->let_go()) {
      pending_.reset();
    } else {
      [[maybe_unused]] const Pending* leaked = pending_.release();
    }
  }

  // Whom this rank still waits for.
  std::set<int> peers() const {
    std::set<int> peers;
    for (const Message& message : pending_->messages) peers.insert(message.peer);
    return peers;
  }

  std::string missing() const {
    if (pending_->ring && size() > 2) {
      return fmt::format("nothing more comes from or goes to rank {}, which may itself be waiting",
                         fmt::join(peers(), " or "));
    }
    return fmt::format("rank {} did not take part", fmt::join(peers(), ", "));
  }

  // Takes note of the messages that have ended, and posts what can go now. False: none had.
  bool progress() {
    auto& requests = pending_->requests;
    auto& messages = pending_->messages;
    if (requests.empty()) {
      advance();
      return true;
    }
    ended_.resize(requests.size());
    statuses_.resize(requests.size());
    int count = 0;
    const int code = MPI_Testsome(static_cast<int>(requests.size()), requests.data(), &count,
                                  ended_.data(), statuses_.data());
    if (code != MPI_ERR_IN_STATUS) mpi_check(code);
    if (count == 0) return false;
    finished_.clear();
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      const Message& message = messages[static_cast<std::size_t>(ended_[i])];
      check_message(message, statuses_[i], code == MPI_ERR_IN_STATUS);
      finished_.push_back(message);
    }
    std::size_t kept = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (requests[i] == MPI_REQUEST_NULL) continue;
      requests[kept] = requests[i];
      messages[kept++] = messages[i];
    }
    requests.resize(kept);
    messages.resize(kept);
    for (const Message& message : finished_) {
      if (message.place < 0) continue;
      if (message.direction == Direction::send) {
        pending_->ring->sent(message.place);
        --sending_;
      } else {
        pending_->ring->received(message.place);
        --receiving_;
      }
    }
    if (pending_->ring) go_round();
    return true;
  }

  // Has this message come as it was expected? Tags tell most other operations' messages apart, not
  // all: they have few bits.
  void check_message(const Message& message, const MPI_Status& status, bool may_have_failed) const {
    std::string sent;
    if (may_have_failed && status.MPI_ERROR != MPI_SUCCESS) {
      int what = MPI_SUCCESS;
      MPI_Error_class(status.MPI_ERROR, &what);
      if (what != MPI_ERR_TRUNCATE) mpi_check(status.MPI_ERROR);
      sent = fmt::format("more than {}", message.bytes);
    } else if (message.direction == Direction::receive) {
      int bytes = 0;
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      if (bytes == message.bytes) return;
      sent = std::to_string(bytes);
    } else {
      return;
    }
    throw RanksDisagree(
        fmt::format("rank {} sent {} bytes in one message where rank {} expected {} in {}; every "
                    "rank must call the same operations in the same order",
                    message.peer, sent, rank(), message.bytes, record_.describe()));
  }

  char* in() const { return pending_->in; }
  char* out() const { return pending_->out; }
  std::int64_t width() const {
    return static_cast<std::int64_t>(pending_->call.input.element_size());
  }
  static std::int64_t at(const Counts& counts, int rank) {
    return counts[static_cast<std::size_t>(rank)];
  }

  MPI_Request* new_request(Message message) {
    pending_->requests.push_back(MPI_REQUEST_NULL);
    pending_->messages.push_back(message);
    return &pending_->requests.back();
  }
  // An empty message is sent, too: every operation is met by all that call it.
  template <typename Post>
  void in_parts(std::int64_t bytes, Post post) {
    std::int64_t done = 0;
    do {
      const auto part =
          static_cast<int>(std::min(link().options().max_message_bytes, bytes - done));
      post(done, part);
      done += part;
    } while (done < bytes);
  }
  void send(const char* from, std::int64_t bytes, int peer, int phase, std::int64_t place = -1) {
    const int tag = link().tag(sequence_, record_.towards(peer).giving(), phase);
    bytes_sent_ += bytes;
    in_parts(bytes, [&](std::int64_t done, int part) {
      mpi_check(MPI_Isend(from + done, part, MPI_BYTE, peer, tag, link().comm(),
                          new_request({Direction::send, peer, place, part})));
    });
  }
  void receive(char* to, std::int64_t bytes, int peer, int phase, std::int64_t place = -1) {
    const int tag = link().tag(sequence_, record_.towards(peer).taking(), phase);
    in_parts(bytes, [&](std::int64_t done, int part) {
      mpi_check(MPI_Irecv(to + done, part, MPI_BYTE, peer, tag, link().comm(),
                          new_request({Direction::receive, peer, place, part})));
    });
  }

  template <typename Body>
  void each_peer(Body body) {
    // Starting behind oneself spreads the load: no two ranks send to the same peer first.
    for (int step = 1; step < size(); ++step) body((rank() + step) % size());
  }

  void post_first() {
    const Operation& call = pending_->call;
    switch (call.kind) {
      case OperationKind::all_reduce:
      case OperationKind::reduce_scatter:
        start_sum();
        return;
      case OperationKind::all_gather:
        copy_own(out() + at(offsets_of(call.output_counts), rank()) * width(), in(),
                 call.input.numel() * width());
        gather(in(), call.output_counts, 0);
        return;
      case OperationKind::all_to_all: {
        const Counts from = offsets_of(call.input_counts);
        const Counts to = offsets_of(call.output_counts);
        copy_own(out() + at(to, rank()) * width(), in() + at(from, rank()) * width(),
                 at(call.output_counts, rank()) * width());
        each_peer([&](int peer) {
          receive(out() + at(to, peer) * width(), at(call.output_counts, peer) * width(), peer, 0);
          send(in() + at(from, peer) * width(), at(call.input_counts, peer) * width(), peer, 0);
        });
        return;
      }
      case OperationKind::broadcast: {
        const Counts offsets = offsets_of(call.output_counts);
        if (rank() == call.root) {
          each_peer([&](int peer) {
            send(in() + at(offsets, peer) * width(), at(call.output_counts, peer) * width(), peer,
                 0);
          });
        } else {
          receive(out() + at(offsets, rank()) * width(), at(call.output_counts, rank()) * width(),
                  call.root, 0);
        }
        return;
      }
      case OperationKind::barrier:
        each_peer([&](int peer) {
          receive(nullptr, 0, peer, 0);
          send(nullptr, 0, peer, 0);
        });
        return;
      case OperationKind::split:
        return;
    }
  }

  // A large sum goes round the ring, so that no link carries two streams; a small one goes to the
  // owners and back, which takes two messages' time on any number of ranks. Two ranks exchange.
  void start_sum() {
    const Operation& call = pending_->call;
    const std::int64_t largest =
        *std::max_element(sum_counts().begin(), sum_counts().end()) * width();
    const std::int64_t piece = std::min(kPieceBytes, link().options().max_message_bytes);
    if (largest > piece || (size() == 2 && call.kind == OperationKind::all_reduce)) {
      pending_->ring.emplace(call, rank(), size(), piece);
      go_round();
      return;
    }
    const Counts offsets = offsets_of(sum_counts());
    const std::int64_t share = at(sum_counts(), rank()) * width();
    pending_->terms =
        std::make_unique_for_overwrite<char[]>(static_cast<std::size_t>(share * size()));
    each_peer([&](int peer) {
      receive(pending_->terms.get() + peer * share, share, peer, 0);
      send(in() + at(offsets, peer) * width(), at(sum_counts(), peer) * width(), peer, 0);
    });
  }

  const Counts& sum_counts() const {
    const Operation& call = pending_->call;
    return call.kind == OperationKind::all_reduce ? call.output_counts : call.input_counts;
  }

  // Posts what may go now.
  void go_round() {
    RingSum& ring = *pending_->ring;
    const int before = (rank() + size() - 1) % size();
    const int behind = (rank() + 1) % size();
    for (bool posted = true; posted;) {
      posted = false;
      for (; receiving_ < kWindow; ++receiving_) {
        const auto next = ring.next_to_receive();
        if (!next) break;
        receive(next->data, next->bytes, before, 0, next->place);
        posted = true;
      }
      for (; sending_ < kWindow; ++sending_) {
        const auto next = ring.next_to_send();
        if (!next) break;
        send(next->data, next->bytes, behind, 0, next->place);
        posted = true;
      }
    }
  }

  // The terms of this rank's share have come.
  void reduce_own_share() {
    const Operation& call = pending_->call;
    const std::int64_t count = at(sum_counts(), rank());
    const std::int64_t share = count * width();
    const std::int64_t offset = at(offsets_of(sum_counts()), rank()) * width();
    char* const own = pending_->terms.get() + rank() * share;
    copy_own(own, in() + offset, share);
    char* const sum = pending_->terms.get() + in_ring(rank(), 0, size()) * share;
    for (int step = 1; step < size(); ++step) {
      const int next = in_ring(rank(), step, size());
      reduce_into(call.input.scalar_type(), call.op, sum, pending_->terms.get() + next * share,
                  count);
    }
    copy_own(call.kind == OperationKind::all_reduce ? out() + offset : out(), sum, share);
  }

  void gather(const char* mine, const Counts& counts, int phase) {
    const Counts offsets = offsets_of(counts);
    each_peer([&](int peer) {
      receive(out() + at(offsets, peer) * width(), at(counts, peer) * width(), peer, phase);
      send(mine, at(counts, rank()) * width(), peer, phase);
    });
  }

  void copy_own(char* to, const char* from, std::int64_t bytes) {
    if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }

  // No message is in flight any more: go on to the next phase, or be done.
  void advance() {
    const Operation& call = pending_->call;
    if (pending_->ring) {
      check(pending_->ring->done(), "a sum has a message in flight until it is done");
    } else if (!second_phase_ && pending_->terms) {
      second_phase_ = true;
      reduce_own_share();
      if (call.kind == OperationKind::all_reduce) {
        gather(out() + at(offsets_of(sum_counts()), rank()) * width(), sum_counts(), 1);
        return;
      }
    } else if (!second_phase_ && call.kind == OperationKind::broadcast) {
      second_phase_ = true;
      pass_on_own_share();
      return;
    }
    if (pending_->result.defined()) {
      std::memcpy(pending_->result.data_ptr(), out(), pending_->result.nbytes());
    }
    done_ = true;
  }

  // Of a broadcast.
  void pass_on_own_share() {
    const Operation& call = pending_->call;
    // The root has the whole already; it only sends.
    const Counts offsets = offsets_of(call.output_counts);
    const char* own = out() + at(offsets, rank()) * width();
    each_peer([&](int peer) {
      if (peer != call.root) send(own, at(call.output_counts, rank()) * width(), peer, 1);
      if (rank() != call.root) {
        receive(out() + at(offsets, peer) * width(), at(call.output_counts, peer) * width(), peer,
                1);
      }
    });
  }

  std::shared_ptr<Membership> group_;
  CallRecord record_;
  std::int64_t sequence_;
  std::unique_ptr<Pending> pending_;
  bool second_phase_ = false;
  bool done_ = false;
  std::vector<int> ended_;            // scratch of `progress`
  std::vector<MPI_Status> statuses_;  // scratch of `progress`
  std::vector<Message> finished_;     // scratch of `progress`
  int sending_ = 0;                   // messages of the ring
  int receiving_ = 0;
  std::int64_t bytes_sent_ = 0;
};

}  // namespace

std::unique_ptr<Work> start_work(std::shared_ptr<Membership> group, Operation call) {
  auto work = std::make_unique<MpiWork>(std::move(group), std::move(call));
  work->start();
  return work;
}

}  // namespace thinwire::mpi
