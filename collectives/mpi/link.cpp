#include "collectives/mpi/link.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>

namespace thinwire::mpi {
namespace {

// The tag of notices. All other tags have a bit that this one lacks.
constexpr int kNoticeTag = 1;
// A notice is short enough for MPI to send it without a handshake, so that who hears one never
// waits for its sender.
constexpr std::size_t kNoticeText = 2000;

bool is_finalized() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  return finalized != 0;
}

}  // namespace

std::string error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return {text, static_cast<std::size_t>(length)};
}

void mpi_check(int code, const std::source_location& where) {
  if (code == MPI_SUCCESS) return;
  throw PeerLost(fmt::format("MPI failed: {} ({}:{}); a peer or the network is gone",
                             error_text(code), where.file_name(), where.line()));
}

// --- Family -------------------------------------------------------------------------------------

std::shared_ptr<Family> Family::make(std::chrono::milliseconds timeout) {
  const std::shared_ptr<Family> family(new Family(timeout));
  // MPI_Finalize begins with deleting what is attached to MPI_COMM_SELF.
  int key = MPI_KEYVAL_INVALID;
  mpi_check(MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, &before_finalize, &key, nullptr));
  mpi_check(MPI_Comm_set_attr(MPI_COMM_SELF, key, new std::shared_ptr<Family>(family)));
  mpi_check(MPI_Comm_free_keyval(&key));
  return family;
}

int Family::before_finalize(MPI_Comm, int, void* family, void*) {
  auto* const held = static_cast<std::shared_ptr<Family>*>(family);
  (*held)->end();
  delete held;
  return MPI_SUCCESS;
}

void Family::opened(const std::shared_ptr<Link>& link) {
  reap();
  const std::lock_guard lock(mutex_);
  std::erase_if(open_, [](const auto& weak) { return weak.expired(); });
  open_.push_back(link);
}

void Family::left(std::shared_ptr<Link> link) {
  {
    const std::lock_guard lock(mutex_);
    closing_.push_back(std::move(link));
  }
  reap();
}

void Family::reap() {
  std::vector<std::shared_ptr<Link>> finished;  // they let go of the family without its mutex
  const std::lock_guard lock(mutex_);
  for (auto& link : closing_) {
    if (link->finished()) finished.push_back(std::move(link));
  }
  std::erase(closing_, nullptr);
}

void Family::end() {
  std::vector<std::shared_ptr<Link>> open;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& weak : open_) {
      if (auto link = weak.lock()) open.push_back(std::move(link));
    }
  }
  // A communicator that outlives MPI has not left its group yet.
  for (const auto& link : open) link->leave();
  const Deadline deadline = Clock::now() + timeout_;
  for (;;) {
    reap();
    {
      const std::lock_guard lock(mutex_);
      if (closing_.empty() || Clock::now() >= deadline) break;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  const std::lock_guard lock(mutex_);
  closing_.clear();
}

// --- Link ---------------------------------------------------------------------------------------

Link::Link(MPI_Comm comm, const MpiOptions& options, std::shared_ptr<Link> parent,
           std::shared_ptr<Family> family)
    : options_(options), parent_(std::move(parent)), family_(std::move(family)), comm_(comm) {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
  goodbyes_.resize(static_cast<std::size_t>(size_));
  stalled_.resize(static_cast<std::size_t>(size_));
  const int* bound = nullptr;
  int found = 0;
  mpi_check(MPI_Comm_get_attr(comm_, MPI_TAG_UB, &bound, &found));
  // The standard promises 32767. One bit tells a message from a notice, one tells its stream.
  const auto largest = static_cast<unsigned>(found != 0 ? *bound : 32767);
  const int bits = std::bit_width(largest + 1) - 1 - 2;
  sequence_bits_ = std::min(12, bits / 2);
  what_bits_ = std::min(16, bits - sequence_bits_);
}

Link::~Link() {
  // What MPI has not sent it may read until the process ends, so it is never freed.
  for (auto& notice : notices_) {
    if (notice->request == MPI_REQUEST_NULL) continue;
    [[maybe_unused]] const Notice* leaked = notice.release();
  }
}

int Link::tag(std::int64_t sequence, std::uint64_t what, int stream) const {
  const auto low = [](std::uint64_t value, int bits) {
    return static_cast<int>(value & ((std::uint64_t{1} << bits) - 1));
  };
  const int number = low(static_cast<std::uint64_t>(sequence), sequence_bits_);
  return (1 << (sequence_bits_ + what_bits_ + 1)) | (number << (what_bits_ + 1)) |
         (low(what, what_bits_) << 1) | stream;
}

std::int64_t Link::begin(const CallRecord& call) {
  hear();
  std::int64_t sequence = 0;
  {
    const std::lock_guard lock(mutex_);
    throw_if_ended(posted_);
    sequence = posted_++;
    calls_[static_cast<std::size_t>(sequence) % kRemembered] = call;
    for (int peer = 0; peer < size_; ++peer) {
      auto& stalled = stalled_[static_cast<std::size_t>(peer)];
      if (!stalled || stalled->sequence > sequence) continue;
      const std::string difference =
          stalled->sequence == sequence
              ? disagreement(stalled->call, peer, call.towards(peer), rank_)
              : std::string();
      stalled.reset();
      if (!difference.empty()) end_locked({FailureKind::disagree, difference, sequence});
    }
  }
  throw_if_ended(sequence);
  return sequence;
}

void Link::throw_if_ended(std::int64_t sequence) const {
  for (const Link* link = this; link != nullptr; link = link->parent_.get()) {
    const std::int64_t from = link->ends_from_.load(std::memory_order_acquire);
    if (from != kNever && sequence >= from) raise(link->failure_);
    sequence = kNever;  // a part ends with the whole
  }
}

void Link::end(const Failure& failure) {
  const std::lock_guard lock(mutex_);
  end_locked(failure);
}

void Link::end_locked(const Failure& failure) {
  if (!note(failure)) return;
  NoticeHeader header;
  header.kind = NoticeKind::failure;
  header.failure = failure_.kind;
  header.sequence = failure.from;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer != rank_) post(peer, header, {}, failure_.reason.substr(0, kNoticeText));
  }
}

// False if that is known already.
bool Link::note(const Failure& failure) {
  if (failure.from >= ends_from_.load()) return false;
  if (!has_ended()) failure_ = failure;
  ends_from_.store(failure.from, std::memory_order_release);
  return true;
}

void Link::hear() {
  for (Link* link = this; link != nullptr; link = link->parent_.get()) {
    const std::unique_lock lock(link->mutex_, std::try_to_lock);
    // Who holds the mutex is hearing notices as well, or lets go of it soon.
    if (lock) link->hear_locked();
  }
}

void Link::hear_locked() {
  for (;;) {
    if (comm_ == MPI_COMM_NULL) return;
    int found = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, kNoticeTag, comm_, &found, &status) != MPI_SUCCESS || !found) {
      return;
    }
    int length = 0;
    MPI_Get_count(&status, MPI_BYTE, &length);
    std::vector<char> bytes(static_cast<std::size_t>(length));
    if (MPI_Recv(bytes.data(), length, MPI_BYTE, status.MPI_SOURCE, kNoticeTag, comm_,
                 MPI_STATUS_IGNORE) != MPI_SUCCESS) {
      return;
    }
    take(status.MPI_SOURCE, bytes);
  }
}

void Link::take(int from, const std::vector<char>& bytes) {
  NoticeHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  std::vector<CallSummary> calls(header.calls);
  std::memcpy(calls.data(), bytes.data() + sizeof header, calls.size() * sizeof(CallSummary));
  switch (header.kind) {
    case NoticeKind::failure:
      // It needs no passing on: the sender has told every rank.
      note({header.failure,
            std::string(bytes.end() - static_cast<std::ptrdiff_t>(header.text), bytes.end()),
            header.sequence});
      return;
    case NoticeKind::goodbye:
      goodbyes_[static_cast<std::size_t>(from)] = {header.sequence, std::move(calls)};
      somebody_left_.store(true);
      return;
    case NoticeKind::stalled: {
      if (header.sequence >= posted_) {
        stalled_[static_cast<std::size_t>(from)] = {header.sequence, calls.front()};
        return;
      }
      if (posted_ - header.sequence > static_cast<std::int64_t>(kRemembered)) return;
      const std::string difference =
          disagreement(calls.front(), from, remembered(header.sequence).towards(from), rank_);
      if (!difference.empty()) end_locked({FailureKind::disagree, difference, header.sequence});
      return;
    }
  }
}

void Link::post(int peer, NoticeHeader header, const std::vector<CallSummary>& calls,
                const std::string& text) {
  drop_what_is_sent();
  header.calls = static_cast<std::uint32_t>(calls.size());
  header.text = static_cast<std::uint32_t>(text.size());
  auto notice = std::make_unique<Notice>();
  const std::size_t told = calls.size() * sizeof(CallSummary);
  notice->bytes.resize(sizeof header + told + text.size());
  std::memcpy(notice->bytes.data(), &header, sizeof header);
  if (told > 0) std::memcpy(notice->bytes.data() + sizeof header, calls.data(), told);
  std::copy(text.begin(), text.end(),
            notice->bytes.begin() + static_cast<std::ptrdiff_t>(sizeof header + told));
  // If it cannot be sent the peer is gone, and needs no notice.
  MPI_Isend(notice->bytes.data(), static_cast<int>(notice->bytes.size()), MPI_BYTE, peer,
            kNoticeTag, comm_, &notice->request);
  notices_.push_back(std::move(notice));
}

void Link::drop_what_is_sent() {
  std::erase_if(notices_, [](const auto& notice) {
    int done = 0;
    return MPI_Test(&notice->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || done != 0;
  });
}

std::optional<Failure> Link::failure_of(int peer, std::int64_t sequence,
                                        const CallRecord& call) const {
  const auto& goodbye = goodbyes_[static_cast<std::size_t>(peer)];
  if (!goodbye) return {};
  if (goodbye->posted <= sequence) {
    return Failure{FailureKind::lost, left_before(peer, call.describe()), sequence};
  }
  const std::int64_t back = goodbye->posted - sequence;
  if (back > static_cast<std::int64_t>(goodbye->calls.size())) return {};
  const std::string difference =
      disagreement(goodbye->calls[goodbye->calls.size() - static_cast<std::size_t>(back)], peer,
                   call.towards(peer), rank_);
  if (difference.empty()) return {};
  return Failure{FailureKind::disagree, difference, sequence};
}

void Link::miss(const std::set<int>& peers, std::int64_t sequence, const CallRecord& call) {
  if (!somebody_left_.load()) return;
  const std::lock_guard lock(mutex_);
  for (int peer = 0; peer < size_; ++peer) {
    const auto failure = failure_of(peer, sequence, call);
    // If a rank has left that this one does not wait for, one that it does wait for may: in a sum
    // that goes round a ring.
    if (failure && (failure->kind == FailureKind::lost || peers.contains(peer))) {
      end_locked(*failure);
    }
  }
}

void Link::tell_stalled(const std::set<int>& peers, std::int64_t sequence, const CallRecord& call) {
  const std::lock_guard lock(mutex_);
  NoticeHeader header;
  header.kind = NoticeKind::stalled;
  header.sequence = sequence;
  for (const int peer : peers) {
    // A rank that has left has told in its goodbye what it called.
    if (!goodbyes_[static_cast<std::size_t>(peer)]) post(peer, header, {call.towards(peer)}, {});
  }
}

void Link::leave() {
  if (is_finalized()) return;
  {
    const std::lock_guard lock(mutex_);
    // Messages of a group that has failed may be under way for ever, so it is never freed.
    if (left_ || has_ended()) return;
    left_ = true;
    NoticeHeader header;
    header.kind = NoticeKind::goodbye;
    header.sequence = posted_;
    const auto told = std::min<std::int64_t>(posted_, kTold);
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      std::vector<CallSummary> calls;
      for (std::int64_t sequence = posted_ - told; sequence < posted_; ++sequence) {
        calls.push_back(remembered(sequence).towards(peer));
      }
      post(peer, header, calls, {});
    }
  }
  family_->left(shared_from_this());
}

// Freeing is local in practice, and here nobody can have anything under way any more: every rank
// has sent its last message, a goodbye, and this one has got them all.
bool Link::finished() {
  const std::lock_guard lock(mutex_);
  hear_locked();
  if (has_ended()) return true;
  drop_what_is_sent();
  const auto goodbyes = std::count_if(goodbyes_.begin(), goodbyes_.end(),
                                      [](const auto& goodbye) { return goodbye.has_value(); });
  if (!notices_.empty() || goodbyes < size_ - 1) return false;
  MPI_Comm_free(&comm_);
  return true;
}

}  // namespace thinwire::mpi
