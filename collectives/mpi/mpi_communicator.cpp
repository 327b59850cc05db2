#include "collectives/mpi/mpi_communicator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
#include <source_location>
#include <thread>

#include "collectives/operation.h"
#include "collectives/ring_sum.h"
#include "runtime/base/error.h"

namespace thinwire {
namespace {

void mpi_check(int code, const std::source_location& where = std::source_location::current()) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw PeerLost(fmt::format("MPI failed: {} ({}:{}); a peer or the network is gone",
                             std::string(text, static_cast<std::size_t>(length)), where.file_name(),
                             where.line()));
}

constexpr int kAbortTag = 1;
constexpr int kFirstTag = 2;

// The duplicated communicator and what its operations share.
struct Link {
  Link(MPI_Comm parent, MpiOptions link_options) : options(link_options) {
    mpi_check(MPI_Comm_dup(parent, &comm));
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
  }
  ~Link() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Freeing is collective: after an abort the others may never come.
    if (!finalized && !aborted.load()) MPI_Comm_free(&comm);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  void poison(const std::string& why) {
    const std::lock_guard lock(mutex);
    if (aborted.load()) return;
    reason = why;
    aborted.store(true);
  }
  void throw_if_aborted() {
    if (!aborted.load()) return;
    const std::lock_guard lock(mutex);
    throw PeerLost(reason);
  }
  // Tells the peers, once. Called by whichever thread may call MPI.
  void send_notices() {
    if (!aborted.load() || noticed.exchange(true)) return;
    // Kept for ever: MPI may still read it when this rank is long gone.
    auto* text = new std::string(reason);
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      MPI_Request request = MPI_REQUEST_NULL;
      MPI_Isend(text->data(), static_cast<int>(text->size()), MPI_BYTE, peer, kAbortTag, comm,
                &request);
      int done = 0;
      MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    }
  }
  // Has a peer aborted the group?
  void poll_notice() {
    int flag = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, kAbortTag, comm, &flag, &status) != MPI_SUCCESS || !flag) return;
    int length = 0;
    MPI_Get_count(&status, MPI_BYTE, &length);
    std::string text(static_cast<std::size_t>(length), '\0');
    MPI_Recv(text.data(), length, MPI_BYTE, status.MPI_SOURCE, kAbortTag, comm, MPI_STATUS_IGNORE);
    noticed.store(true);  // the peer has told everybody
    poison(text);
  }

  MpiOptions options;
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int size = 1;
  std::int64_t sequence = 0;
  std::atomic<bool> aborted{false};
  std::atomic<bool> noticed{false};
  std::mutex mutex;
  std::string reason;
};

enum class Direction { send, receive };

// One message in flight, beside its request.
struct Message {
  Direction direction = Direction::send;
  int peer = -1;            // -1: all
  std::int64_t place = -1;  // in the operation's ring; -1: in none
};

// What an operation holds; outlives the Work when MPI may still touch it.
struct Pending {
  Operation call;
  std::optional<RingSum> ring;    // of a large sum, or of one between two ranks
  std::unique_ptr<char[]> terms;  // of a small one: this rank's share of all ranks
  std::vector<MPI_Request> requests;
  std::vector<Message> messages;  // of each request
};

class MpiWork final : public Work {
 public:
  MpiWork(std::shared_ptr<Link> link, Operation call)
      : Work(link->options.timeout), link_(std::move(link)), pending_(std::make_unique<Pending>()) {
    pending_->call = std::move(call);
    tag_ = kFirstTag + static_cast<int>(2 * (link_->sequence++ % (1 << 13)));
  }

  ~MpiWork() override {
    if (done_) return;
    if (!link_->aborted.load()) {
      link_->poison(fmt::format("rank {} dropped {} without waiting for it", link_->rank,
                                pending_->call.describe()));
      link_->send_notices();
    }
    // MPI may still write into the buffers of requests that never ended.
    [[maybe_unused]] const Pending* leaked = pending_.release();
  }

  using Work::wait;
  void wait(Deadline deadline) override {
    int polls = 0;
    while (!done_) {
      link_->throw_if_aborted();
      bool moved = false;
      try {
        moved = progress();
      } catch (const PeerLost& error) {
        link_->poison(error.what());
        throw;
      }
      if (moved) {
        polls = 0;
      } else if (++polls > kYields) {
        link_->poll_notice();
        link_->throw_if_aborted();
        if (Clock::now() >= deadline) {
          link_->poison(fmt::format("{} timed out on rank {}: {}; see why, or raise the timeout",
                                    pending_->call.describe(), link_->rank, missing()));
          link_->send_notices();
          link_->throw_if_aborted();
        }
        std::this_thread::sleep_for(
            std::chrono::microseconds(std::min(20 * (polls - kYields), 200)));
      } else {
        sched_yield();
      }
    }
  }

  std::int64_t bytes_sent() const override { return bytes_sent_; }

  // Posts the first messages. Apart from the constructor, so that the destructor looks after what
  // was posted before a failure.
  void start() {
    const Operation& call = pending_->call;
    switch (call.kind) {
      case OperationKind::all_reduce:
      case OperationKind::reduce_scatter:
        start_sum();
        return;
      case OperationKind::all_gather: {
        char* own = out() + at(offsets_of(call.output_counts), link_->rank) * width();
        copy_own(own, in(), call.input.numel() * width());
        gather(in(), call.output_counts, tag_);
        return;
      }
      case OperationKind::all_to_all: {
        const Counts from = offsets_of(call.input_counts);
        const Counts to = offsets_of(call.output_counts);
        copy_own(out() + at(to, link_->rank) * width(), in() + at(from, link_->rank) * width(),
                 at(call.output_counts, link_->rank) * width());
        each_peer([&](int peer) {
          receive(out() + at(to, peer) * width(), at(call.output_counts, peer) * width(), peer,
                  tag_);
          send(in() + at(from, peer) * width(), at(call.input_counts, peer) * width(), peer, tag_);
        });
        return;
      }
      case OperationKind::broadcast: {
        const Counts offsets = offsets_of(call.output_counts);
        if (link_->rank == call.root) {
          each_peer([&](int peer) {
            send(in() + at(offsets, peer) * width(), at(call.output_counts, peer) * width(), peer,
                 tag_);
          });
        } else {
          receive(out() + at(offsets, link_->rank) * width(),
                  at(call.output_counts, link_->rank) * width(), call.root, tag_);
        }
        return;
      }
      case OperationKind::barrier:
        mpi_check(MPI_Ibarrier(link_->comm, new_request({})));
        return;
      case OperationKind::split:
        return;
    }
  }

 private:
  static constexpr int kYields = 50;
  // Sums go round the ring in pieces of so many bytes, this many of them posted in each direction.
  // Each piece costs a handshake, and with pieces of 64 KiB that showed at 100 Mbit/s.
  static constexpr std::int64_t kPieceBytes = 1 << 18;
  static constexpr int kWindow = 16;

  // Whom this rank still waits for.
  std::string missing() {
    std::set<int> peers;
    for (std::size_t i = 0; i < pending_->requests.size(); ++i) {
      int ended = 0;  // Testsome has ended those that it could
      MPI_Test(&pending_->requests[i], &ended, MPI_STATUS_IGNORE);
      if (!ended && pending_->messages[i].peer >= 0) peers.insert(pending_->messages[i].peer);
    }
    if (peers.empty()) return "a peer did not take part";
    if (pending_->ring && link_->size > 2) {
      return fmt::format("nothing more comes from or goes to rank {}, which may itself be waiting",
                         fmt::join(peers, " or "));
    }
    return fmt::format("rank {} did not take part", fmt::join(peers, ", "));
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
    int count = 0;
    mpi_check(MPI_Testsome(static_cast<int>(requests.size()), requests.data(), &count,
                           ended_.data(), MPI_STATUSES_IGNORE));
    if (count == 0) return false;
    finished_.clear();
    for (int i = 0; i < count; ++i) {
      finished_.push_back(messages[static_cast<std::size_t>(ended_[static_cast<std::size_t>(i)])]);
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

  char* in() const { return static_cast<char*>(pending_->call.input.data_ptr()); }
  char* out() const { return static_cast<char*>(pending_->call.output.data_ptr()); }
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
  void send(const char* from, std::int64_t bytes, int tag, Message message) {
    message.direction = Direction::send;
    bytes_sent_ += bytes;
    for (std::int64_t done = 0; done < bytes; done += link_->options.max_message_bytes) {
      const auto part = static_cast<int>(std::min(link_->options.max_message_bytes, bytes - done));
      mpi_check(MPI_Isend(from + done, part, MPI_BYTE, message.peer, tag, link_->comm,
                          new_request(message)));
    }
  }
  void receive(char* to, std::int64_t bytes, int tag, Message message) {
    message.direction = Direction::receive;
    for (std::int64_t done = 0; done < bytes; done += link_->options.max_message_bytes) {
      const auto part = static_cast<int>(std::min(link_->options.max_message_bytes, bytes - done));
      mpi_check(MPI_Irecv(to + done, part, MPI_BYTE, message.peer, tag, link_->comm,
                          new_request(message)));
    }
  }
  void send(const char* from, std::int64_t bytes, int peer, int tag) {
    send(from, bytes, tag, {.peer = peer});
  }
  void receive(char* to, std::int64_t bytes, int peer, int tag) {
    receive(to, bytes, tag, {.peer = peer});
  }

  template <typename Body>
  void each_peer(Body body) {
    // Starting behind oneself spreads the load: no two ranks send to the same peer first.
    for (int step = 1; step < link_->size; ++step) body((link_->rank + step) % link_->size);
  }

  // A large sum goes round the ring, so that no link carries two streams; a small one goes to the
  // owners and back, which takes two messages' time on any number of ranks. Two ranks exchange.
  void start_sum() {
    const Operation& call = pending_->call;
    const std::int64_t largest =
        *std::max_element(sum_counts().begin(), sum_counts().end()) * width();
    const std::int64_t piece = std::min(kPieceBytes, link_->options.max_message_bytes);
    if (largest > piece || (link_->size == 2 && call.kind == OperationKind::all_reduce)) {
      pending_->ring.emplace(call, link_->rank, link_->size, piece);
      go_round();
      return;
    }
    const Counts offsets = offsets_of(sum_counts());
    const std::int64_t share = at(sum_counts(), link_->rank) * width();
    pending_->terms =
        std::make_unique_for_overwrite<char[]>(static_cast<std::size_t>(share * link_->size));
    each_peer([&](int peer) {
      receive(pending_->terms.get() + peer * share, share, peer, tag_);
      send(in() + at(offsets, peer) * width(), at(sum_counts(), peer) * width(), peer, tag_);
    });
  }

  const Counts& sum_counts() const {
    const Operation& call = pending_->call;
    return call.kind == OperationKind::all_reduce ? call.output_counts : call.input_counts;
  }

  // Posts what may go now.
  void go_round() {
    RingSum& ring = *pending_->ring;
    const int before = (link_->rank + link_->size - 1) % link_->size;
    const int behind = (link_->rank + 1) % link_->size;
    for (bool posted = true; posted;) {
      posted = false;
      for (; receiving_ < kWindow; ++receiving_) {
        const auto next = ring.next_to_receive();
        if (!next) break;
        receive(next->data, next->bytes, tag_, {.peer = before, .place = next->place});
        posted = true;
      }
      for (; sending_ < kWindow; ++sending_) {
        const auto next = ring.next_to_send();
        if (!next) break;
        send(next->data, next->bytes, tag_, {.peer = behind, .place = next->place});
        posted = true;
      }
    }
  }

  // The terms of this rank's share have come.
  void reduce_own_share() {
    const Operation& call = pending_->call;
    const std::int64_t count = at(sum_counts(), link_->rank);
    const std::int64_t share = count * width();
    const std::int64_t offset = at(offsets_of(sum_counts()), link_->rank) * width();
    char* const own = pending_->terms.get() + link_->rank * share;
    copy_own(own, in() + offset, share);
    char* const sum = pending_->terms.get() + in_ring(link_->rank, 0, link_->size) * share;
    for (int step = 1; step < link_->size; ++step) {
      const int rank = in_ring(link_->rank, step, link_->size);
      reduce_into(call.input.scalar_type(), call.op, sum, pending_->terms.get() + rank * share,
                  count);
    }
    copy_own(call.kind == OperationKind::all_reduce ? out() + offset : out(), sum, share);
  }

  void gather(const char* mine, const Counts& counts, int tag) {
    const Counts offsets = offsets_of(counts);
    each_peer([&](int peer) {
      receive(out() + at(offsets, peer) * width(), at(counts, peer) * width(), peer, tag);
      send(mine, at(counts, link_->rank) * width(), peer, tag);
    });
  }

  void copy_own(char* to, const char* from, std::int64_t bytes) {
    if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }

  // No message is in flight any more: go on to the next phase, or be done.
  void advance() {
    const Operation& call = pending_->call;
    const bool scattered = !second_phase_;
    second_phase_ = true;
    done_ = true;
    if (pending_->ring) {
      check(pending_->ring->done(), "a sum has a message in flight until it is done");
    } else if (scattered && pending_->terms) {
      reduce_own_share();
      if (call.kind == OperationKind::reduce_scatter) return;
      done_ = false;
      gather(out() + at(offsets_of(sum_counts()), link_->rank) * width(), sum_counts(), tag_ + 1);
    } else if (scattered && call.kind == OperationKind::broadcast) {
      done_ = false;
      pass_on_own_share();
    }
  }

  // Of a broadcast.
  void pass_on_own_share() {
    const Operation& call = pending_->call;
    // The root has the whole already; it only sends.
    const Counts offsets = offsets_of(call.output_counts);
    const char* own = out() + at(offsets, link_->rank) * width();
    each_peer([&](int peer) {
      if (peer != call.root) {
        send(own, at(call.output_counts, link_->rank) * width(), peer, tag_ + 1);
      }
      if (link_->rank != call.root) {
        receive(out() + at(offsets, peer) * width(), at(call.output_counts, peer) * width(), peer,
                tag_ + 1);
      }
    });
  }

  std::shared_ptr<Link> link_;
  std::unique_ptr<Pending> pending_;
  int tag_ = 0;
  bool second_phase_ = false;
  bool done_ = false;
  std::vector<int> ended_;         // scratch of `progress`
  std::vector<Message> finished_;  // scratch of `progress`
  int sending_ = 0;                // messages of the ring
  int receiving_ = 0;
  std::int64_t bytes_sent_ = 0;
};

class MpiCommunicator final : public OperationCommunicator {
 public:
  explicit MpiCommunicator(std::shared_ptr<Link> link)
      : OperationCommunicator(link->rank, link->size, link->options.timeout),
        link_(std::move(link)) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    // MPI_Comm_split knows no deadline, so it is entered only once everybody is here.
    barrier()->wait();
    MPI_Comm part = MPI_COMM_NULL;
    mpi_check(MPI_Comm_split(link_->comm, color, key, &part));
    auto child = std::make_shared<Link>(part, link_->options);
    MPI_Comm_free(&part);
    return std::make_unique<MpiCommunicator>(std::move(child));
  }

  void abort(const std::string& reason) override {
    link_->poison(reason);
    link_->send_notices();
  }

 private:
  std::unique_ptr<Work> post(Operation call) override {
    link_->throw_if_aborted();
    auto work = std::make_unique<MpiWork>(link_, std::move(call));
    work->start();
    return work;
  }

  std::shared_ptr<Link> link_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, MpiOptions options) {
  check(options.max_message_bytes >= 8, "a message has room for an element");
  require_mpi_for_threads();
  return std::make_unique<MpiCommunicator>(std::make_shared<Link>(parent, options));
}

}  // namespace thinwire
