#include "collectives/mpi/mpi_communicator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <source_location>
#include <thread>

#include "collectives/operation.h"
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

// What a message is for: a part of a sum on its way to the owner, or back, or anything else.
enum class Purpose { to_owner, from_owner, other };
enum class Direction { send, receive };

// One message in flight, beside its request.
struct Message {
  Purpose purpose = Purpose::other;
  Direction direction = Direction::send;
  int peer = -1;  // -1: all
  std::int64_t piece = 0;
};

// What an operation holds; outlives the Work when MPI may still touch it.
struct Pending {
  Operation call;
  std::unique_ptr<char[]> slots;
  std::vector<MPI_Request> requests;
  std::vector<Message> messages;  // of each request
};

// How far a sum has come with one peer, in pieces of the peer's share.
struct Lane {
  std::int64_t pieces = 0;
  std::int64_t next_gather = 0;
  std::vector<bool> sent;
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
        start_sum(call.output_counts,
                  in() + at(offsets_of(call.output_counts), link_->rank) * width());
        return;
      case OperationKind::reduce_scatter:
        start_sum(call.input_counts, out());
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
  // A sum has room for this many pieces from each peer, and sends so many at a time.
  static constexpr int kWindow = 64;
  static constexpr int kSending = 64;
  static constexpr std::int64_t kPieceBytes = 1 << 16;
  // All slots together: bounds the memory of a sum, however large it is.
  static constexpr std::int64_t kSlotBytes = 64 << 20;
  static constexpr std::int64_t kBlockBytes = 16 << 10;  // stays in L1

  // Whom this rank still waits for.
  std::string missing() {
    std::set<int> peers;
    for (std::size_t i = 0; i < pending_->requests.size(); ++i) {
      int ended = 0;  // Testsome has ended those that it could
      MPI_Test(&pending_->requests[i], &ended, MPI_STATUS_IGNORE);
      if (!ended && pending_->messages[i].peer >= 0) peers.insert(pending_->messages[i].peer);
    }
    if (peers.empty()) return "a peer did not take part";
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
    for (const Message& message : finished_) sum_message_ended(message);
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

  // A sum goes in pieces, so that a rank reduces and sends back the first while later ones are
  // still on the wire. Messages of one kind between two ranks keep the order of the pieces, which
  // is how MPI matches them.
  void start_sum(const Counts& counts, char* to) {
    const auto size = static_cast<std::size_t>(link_->size);
    offsets_ = offsets_of(counts);
    to_ = to;
    piece_ = std::max<std::int64_t>(
        1, std::min({kPieceBytes, kSlotBytes / std::max(1, kWindow * (link_->size - 1)),
                     link_->options.max_message_bytes}) /
               width());
    lanes_.resize(size);
    for (std::size_t rank = 0; rank < size; ++rank) {
      lanes_[rank].pieces = (counts[rank] + piece_ - 1) / piece_;
      lanes_[rank].sent.resize(static_cast<std::size_t>(lanes_[rank].pieces));
    }
    const std::int64_t slots = std::min<std::int64_t>(kWindow, mine().pieces);
    pending_->slots = std::make_unique_for_overwrite<char[]>(
        static_cast<std::size_t>(slots * link_->size * piece_ * width()));
    for (std::int64_t piece = 0; piece < slots; ++piece) receive_piece(piece);
    for (const Lane& other : lanes_) most_pieces_ = std::max(most_pieces_, other.pieces);
    reduce_what_arrived();
    send_pieces();
  }

  Lane& lane(int rank) { return lanes_[static_cast<std::size_t>(rank)]; }
  Lane& mine() { return lane(link_->rank); }
  std::int64_t piece_begin(int owner, std::int64_t piece) const {
    return at(offsets_, owner) + piece * piece_;
  }
  std::int64_t piece_count(int owner, std::int64_t piece) const {
    return std::min(piece_, at(offsets_, owner + 1) - piece_begin(owner, piece));
  }
  // Where the piece of this rank's share that `peer` sent arrives.
  char* slot(std::int64_t piece, int peer) const {
    return pending_->slots.get() + (piece % kWindow * link_->size + peer) * piece_ * width();
  }

  void receive_piece(std::int64_t piece) {
    missing_[static_cast<std::size_t>(piece % kWindow)] = link_->size - 1;
    each_peer([&](int peer) {
      receive(slot(piece, peer), piece_count(link_->rank, piece) * width(), tag_,
              {.purpose = Purpose::to_owner, .peer = peer, .piece = piece});
    });
  }

  // Few at a time, and every rank to its next neighbour first: so that a rank mostly hears one
  // peer, not all at once, and a piece is through soon after it began. Results go last: they then
  // keep the link busy while the last pieces are on their way to be reduced.
  void send_pieces() {
    while (sending_ < kSending) {
      if (next_piece_ < most_pieces_) {
        const int owner = (link_->rank + next_step_) % link_->size;
        const std::int64_t piece = next_piece_;
        if (++next_step_ >= link_->size) {
          next_step_ = 1;
          ++next_piece_;
        }
        if (owner == link_->rank || piece >= lane(owner).pieces) continue;
        send(in() + piece_begin(owner, piece) * width(), piece_count(owner, piece) * width(), tag_,
             {.purpose = Purpose::to_owner, .peer = owner, .piece = piece});
      } else if (!results_.empty()) {
        const Message message = results_.front();
        results_.pop_front();
        send(to_ + message.piece * piece_ * width(),
             piece_count(link_->rank, message.piece) * width(), tag_ + 1, message);
      } else {
        return;
      }
      ++sending_;
    }
  }

  void sum_message_ended(const Message& message) {
    if (message.purpose == Purpose::other) return;
    if (message.direction == Direction::send) --sending_;
    if (message.purpose == Purpose::to_owner && message.direction == Direction::receive) {
      --missing_[static_cast<std::size_t>(message.piece % kWindow)];
      reduce_what_arrived();
    }
    if (message.purpose == Purpose::to_owner && message.direction == Direction::send) {
      receive_results(message);
    }
    send_pieces();
  }

  // A piece has left: what comes of it may come in. Not before: it overwrites what was sent.
  void receive_results(const Message& message) {
    Lane& there = lane(message.peer);
    there.sent[static_cast<std::size_t>(message.piece)] = true;
    if (pending_->call.kind != OperationKind::all_reduce) return;
    for (; there.next_gather < there.pieces &&
           there.sent[static_cast<std::size_t>(there.next_gather)];
         ++there.next_gather) {
      receive(out() + piece_begin(message.peer, there.next_gather) * width(),
              piece_count(message.peer, there.next_gather) * width(), tag_ + 1,
              {.purpose = Purpose::from_owner, .peer = message.peer, .piece = there.next_gather});
    }
  }

  void reduce_what_arrived() {
    for (; next_reduce_ < mine().pieces &&
           missing_[static_cast<std::size_t>(next_reduce_ % kWindow)] == 0;
         ++next_reduce_) {
      reduce_piece(next_reduce_);
      if (pending_->call.kind == OperationKind::all_reduce) {
        each_peer([&](int peer) {
          results_.push_back({.purpose = Purpose::from_owner, .peer = peer, .piece = next_reduce_});
        });
      }
      if (next_reduce_ + kWindow < mine().pieces) receive_piece(next_reduce_ + kWindow);
    }
  }

  // to_ := the reduction of one piece of this rank's share, in rank order. Block by block, so that
  // each value comes from memory once.
  void reduce_piece(std::int64_t piece) {
    const std::int64_t count = piece_count(link_->rank, piece);
    const std::int64_t block = kBlockBytes / width();
    for (std::int64_t begin = 0; begin < count; begin += block) {
      const std::int64_t here = std::min(block, count - begin);
      const auto bytes = static_cast<std::size_t>(here * width());
      const char* own = in() + (piece_begin(link_->rank, piece) + begin) * width();
      char* to = to_ + (piece * piece_ + begin) * width();
      const auto from = [&](int rank) {
        return rank == link_->rank ? own : slot(piece, rank) + begin * width();
      };
      char* sum = link_->rank == 0 ? to : slot(piece, 0) + begin * width();
      if (sum == to && to != own) std::memcpy(to, own, bytes);
      for (int rank = 1; rank < link_->size; ++rank) {
        reduce_into(pending_->call.input.scalar_type(), pending_->call.op, sum, from(rank), here);
      }
      if (sum != to) std::memcpy(to, sum, bytes);
    }
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
    if (call.kind != OperationKind::broadcast || second_phase_) {
      done_ = true;
      return;
    }
    second_phase_ = true;
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
  // Of sums.
  Counts offsets_;          // of the owners' shares, in elements
  char* to_ = nullptr;      // where the sum of this rank's share goes
  std::int64_t piece_ = 1;  // elements
  std::vector<Lane> lanes_;
  std::int64_t most_pieces_ = 0;  // that an owner has
  std::int64_t next_piece_ = 0;   // to send: piece and distance of the owner
  int next_step_ = 1;
  int sending_ = 0;
  std::deque<Message> results_;  // to send
  std::int64_t next_reduce_ = 0;
  std::array<int, kWindow> missing_{};  // messages for each slot that have not come
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

MpiEnvironment::MpiEnvironment() {
  int provided = 0;
  mpi_check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided));
  if (provided < MPI_THREAD_MULTIPLE) {
    throw Error(ExitCode::internal,
                "this MPI does not support MPI_THREAD_MULTIPLE; use a build of MPI that does");
  }
}

MpiEnvironment::~MpiEnvironment() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (!finalized) MPI_Finalize();
}

void MpiEnvironment::abort_job(int code) {
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, MpiOptions options) {
  return std::make_unique<MpiCommunicator>(std::make_shared<Link>(parent, options));
}

}  // namespace thinwire
