#include "runtime/step/transaction.h"

#include <ATen/ops/isfinite.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

constexpr std::uint32_t kMostSlices = 0x7fffffff;  // that an opening word can name

// With the number of the step, on which ranks must agree as well.
std::uint64_t hash_layouts(const std::vector<Bucket>& buckets, std::int64_t step) {
  std::uint64_t hash = static_cast<std::uint64_t>(step);
  for (const Bucket& bucket : buckets) {
    const std::uint64_t layout = bucket.layout.hash();
    hash = hash64(&layout, sizeof layout, hash);
  }
  return hash;
}

// One line for each slice: whether it is frozen, and what else its layout says.
std::string describe_layouts(const std::vector<Bucket>& buckets) {
  std::string lines;
  for (const Bucket& bucket : buckets) {
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      lines +=
          fmt::format("{}{:016x}\n", bucket.layout.of(i).frozen ? '1' : '0', bucket.layout.hash(i));
    }
  }
  return lines;
}
constexpr std::size_t kLine = 18;  // characters

// Which ranks' lines of one slice satisfy `wanted`.
template <typename Wanted>
std::vector<int> ranks_where(const std::vector<std::string>& layouts, std::size_t place,
                             Wanted wanted) {
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < layouts.size(); ++rank) {
    if (wanted(layouts[rank].substr(place * kLine, kLine))) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

}  // namespace

StepTransaction::StepTransaction(std::vector<Bucket>& buckets, GradientReducer& reducer,
                                 Communicator& communicator, StepParts parts)
    : buckets_(buckets),
      reducer_(reducer),
      communicator_(communicator),
      host_queue_(make_host_queue()),
      path_(parts.path ? *parts.path : GradientPath{communicator, *host_queue_, *host_queue_}),
      parts_(std::move(parts)),
      handed_over_(buckets.size()),
      used_(buckets.size()),
      ready_(buckets.size()) {
  submit([this] { path_.communication.attach_thread(); });
  for (const Bucket& bucket : buckets_) {
    reducer_.prepare(bucket, communicator_.rank(), communicator_.size());
    if (parts_.before) parts_.before->prepare(bucket);
  }
}

StepTransaction::~StepTransaction() {
  if (!open_) return;
  abort(fmt::format("rank {} left in the middle of a step", communicator_.rank()));
}

void StepTransaction::abort(const std::string& reason) {
  communicator_.abort(reason);
  path_.communicator.abort(reason);
}

void StepTransaction::begin(OpeningWord mine) {
  check(!open_, "a step begins after the one before has ended");
  open_ = true;
  settled_ = false;
  staged_ = 0;
  weight_ = {};
  opening_.clear();
  outcome_ = {};
  std::fill(handed_over_.begin(), handed_over_.end(), false);
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    used_[b].assign(buckets_[b].slices.size(), false);
    for (Slice& slice : buckets_[b].slices) slice.absent = false;
  }
  if (step_.transmission == Transmission::silent) return;
  mine.layouts = hash_layouts(buckets_, step_.step);
  mine.silent_failure = silent_failure_ & kMostSlices;
  submit([this, mine] { agree_on_opening(mine); });
}

void StepTransaction::agree_on_opening(const OpeningWord& mine) {
  opening_ = exchange(communicator_, mine);
  const bool same = std::all_of(opening_.begin(), opening_.end(), [&](const OpeningWord& word) {
    return word.layouts == opening_.front().layouts;
  });
  if (same) return;
  // Everybody has seen that they differ, so everybody comes here.
  const auto steps = all_gather_text(communicator_, std::to_string(step_.step));
  const auto layouts = all_gather_text(communicator_, describe_layouts(buckets_));
  for (std::size_t rank = 1; rank < steps.size(); ++rank) {
    if (steps[rank] == steps[0]) continue;
    throw RanksDisagree(fmt::format(
        "rank {} is in step {}, rank 0 in step {}; end each step in the same way on every rank",
        rank, steps[rank], steps[0]));
  }
  std::size_t place = 0;
  for (const Bucket& bucket : buckets_) {
    for (const Slice& slice : bucket.slices) {
      const std::string first = layouts[0].substr(place * kLine, kLine);
      const auto others =
          ranks_where(layouts, place, [&](const std::string& line) { return line != first; });
      const auto frozen =
          ranks_where(layouts, place, [](const std::string& line) { return line[0] == '1'; });
      const auto not_frozen =
          ranks_where(layouts, place, [](const std::string& line) { return line[0] == '0'; });
      ++place;
      if (!frozen.empty() && !not_frozen.empty()) {
        throw RanksDisagree(fmt::format(
            "ranks have frozen different parameters: {} is frozen on {}, not on {}; freeze and "
            "thaw the same ones on every rank",
            slice.name, rank_list(frozen), rank_list(not_frozen)));
      }
      if (others.empty()) continue;
      throw RanksDisagree(fmt::format(
          "ranks have different layouts: that of {} on {} is not rank 0's; give every rank the "
          "same between the same two steps",
          slice.name, rank_list(others)));
    }
  }
}

void StepTransaction::relayout(std::size_t index, const Layout& layout) {
  check(!open_, "a layout changes between steps");
  Bucket& bucket = buckets_.at(index);
  reducer_.require_possible(bucket, layout);
  bucket.layout = layout;
  // Its memory and its queue are those of the communication thread.
  submit([this, &bucket] {
    reducer_.relayout(bucket);
    if (parts_.before) parts_.before->relayout(bucket);
  });
  thread_.drain();
  if (parts_.relayout) parts_.relayout(bucket);
}

const std::vector<OpeningWord>& StepTransaction::opening_words() {
  thread_.drain();
  return opening_;
}

void StepTransaction::weigh(const SamplesWord& mine) {
  check(path_.communication.on_host(), "gradients that are weighted are in host memory");
  submit([this, mine] { weight_ = agree(exchange(communicator_, mine), communicator_.rank()); });
}

Weighting StepTransaction::agreed_weighting() {
  thread_.drain();
  return weight_.weighting;
}

void StepTransaction::hand_over(std::size_t bucket, const std::vector<bool>& used) {
  check(open_ && !handed_over_.at(bucket), "a bucket is handed over once in an open step");
  check_equal(used.size(), used_[bucket].size(), "slices of a bucket");
  handed_over_[bucket] = true;
  used_[bucket] = used;
  // The bucket is ready once what was enqueued until now has run.
  ready_[bucket] = path_.compute.mark();
  if (step_.transmission != Transmission::silent) stage_what_is_next();
}

void StepTransaction::stage_what_is_next() {
  for (; staged_ < buckets_.size() && handed_over_[staged_]; ++staged_) {
    submit([this, &bucket = buckets_[staged_], ready = std::move(ready_[staged_])] {
      stage(bucket, *ready);
    });
  }
}

// A job that fails on this rank alone must not leave the others waiting.
void StepTransaction::submit(std::function<void()> job) {
  thread_.submit([this, job = std::move(job)] {
    const c10::NoGradGuard no_grad;  // thread-local: this thread needs its own
    try {
      job();
    } catch (const AgreedError&) {
      throw;  // every rank has it: nobody waits
    } catch (const RanksDisagree&) {
      throw;  // so here, or the communicator has ended the group
    } catch (const std::exception& error) {
      abort(fmt::format("rank {} failed: {}", communicator_.rank(), without_stack(error.what())));
      throw;
    } catch (...) {
      abort(fmt::format("rank {} failed", communicator_.rank()));
      throw;
    }
  });
}

void StepTransaction::stage(Bucket& bucket, const Queue::Mark& ready) {
  const auto start = Clock::now();
  path_.communication.wait_for(ready);
  if (parts_.recorder) parts_.recorder->set_bucket(static_cast<std::int64_t>(bucket.index));
  bucket.undecoded.reset();
  if (weight_.factor != 1) bucket.gradient.mul_(weight_.factor);
  if (parts_.before_reduce) parts_.before_reduce(bucket, step_, path_.communication);
  if (parts_.before) parts_.before->before_reduce(bucket, step_);
  reducer_.stage(bucket, path_.communicator, step_);
  if (parts_.recorder) parts_.recorder->set_bucket(std::nullopt);
  if (parts_.trace) {
    parts_.trace->span("communication", fmt::format("bucket {}", bucket.index), start,
                       Clock::now());
  }
}

// The word travels while what was staged last does.
void StepTransaction::close(const StepClosing& closing) {
  const auto start = Clock::now();
  ClosingWord mine{closing.end, {}};
  for (const auto& used : used_) mine.used.insert(mine.used.end(), used.begin(), used.end());
  ClosingExchange word(communicator_, mine);
  reducer_.settle(path_.communicator);
  outcome_.words = word.wait();
  if (!ranks_that(StepEnd::abandoned).empty()) {
    outcome_.reasons = all_gather_text(communicator_, closing.why);
  }
  if (parts_.trace) parts_.trace->span("communication", "settle", start, Clock::now());
}

std::vector<int> StepTransaction::ranks_that(StepEnd end) const {
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < outcome_.words.size(); ++rank) {
    if (outcome_.words[rank].end == end) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

std::string StepTransaction::name_slice(std::size_t place) const {
  for (const Bucket& bucket : buckets_) {
    if (place < bucket.slices.size()) return bucket.slices[place].name;
    place -= bucket.slices.size();
  }
  return "?";
}

Verdict StepTransaction::judge() {
  Verdict verdict;
  for (std::size_t rank = 0; rank < opening_.size(); ++rank) {
    verdict.vote = std::max(verdict.vote, opening_[rank].vote);
    if (opening_[rank].silent_failure > 0 && !verdict.reverted) {
      verdict.reverted = fmt::format(
          "{} on rank {}", name_slice(static_cast<std::size_t>(opening_[rank].silent_failure) - 1),
          rank);
    }
  }
  for (const Bucket& bucket : buckets_) {
    verdict.non_finite = reducer_.non_finite(bucket);
    if (verdict.non_finite) break;
  }
  const auto abandoned = ranks_that(StepEnd::abandoned);
  if (!abandoned.empty()) {
    const int first = abandoned.front();
    verdict.abandoned = fmt::format("{}: {}", rank_list(abandoned),
                                    outcome_.reasons[static_cast<std::size_t>(first)]);
  }
  verdict.superseded = !ranks_that(StepEnd::superseded).empty();
  return verdict;
}

// What some rank did that no step should have; the step is rolled back then.
std::optional<std::string> StepTransaction::misuse() const {
  const auto superseded = ranks_that(StepEnd::superseded);
  const std::size_t others =
      outcome_.words.size() - superseded.size() - ranks_that(StepEnd::idle).size();
  if (!superseded.empty() && others > 0) {
    return fmt::format(
        "{} began a step anew after its gradients had been sent, other ranks did not; run the same "
        "backward passes between two finish() on every rank, or ignore() those of other models",
        rank_list(superseded));
  }
  const auto unused = ranks_that(StepEnd::unused);
  if (unused.empty()) return std::nullopt;
  return fmt::format(
      "{} called finish() without a new gradient; call it once after each backward(), and as "
      "finish(0) on a rank that has no samples",
      rank_list(unused));
}

// No rank had a gradient of it.
void StepTransaction::mark_absent() {
  std::size_t place = 0;
  for (Bucket& bucket : buckets_) {
    for (std::size_t i = 0; i < bucket.slices.size(); ++i, ++place) {
      const bool used = std::any_of(outcome_.words.begin(), outcome_.words.end(),
                                    [&](const ClosingWord& word) { return word.used[place]; });
      bucket.slices[i].absent = !used && !bucket.layout.rests(i);
    }
  }
}

void StepTransaction::settle(const StepClosing& closing) {
  check(open_ && !settled_ && step_.transmission != Transmission::silent,
        "a step that is sent is settled once");
  check_equal(staged_, buckets_.size(), "buckets that were handed over");
  settled_ = true;
  submit([this, closing] { close(closing); });
  try {
    thread_.drain();
  } catch (...) {
    open_ = false;
    throw;
  }
  mark_absent();
}

Bucket StepTransaction::estimate(std::size_t bucket) {
  check(open_ && settled_, "an estimate is read from settle to finish");
  const c10::NoGradGuard no_grad;
  Bucket view = buckets_.at(bucket);
  reducer_.show_estimate(buckets_[bucket], view);
  // Whoever reads it does so in the compute queue.
  path_.compute.wait_for(*path_.communication.mark());
  return view;
}

Verdict StepTransaction::finish(const StepClosing& closing) {
  check(open_, "a step is finished after it has begun");
  const c10::NoGradGuard no_grad;
  if (step_.transmission == Transmission::silent) return finish_silent(closing);
  if (settled_) {
    check(closing.end == StepEnd::finished, "a step that is settled was closed then");
  } else {
    settle(closing);
  }
  Verdict verdict = judge();
  const auto wrong = misuse();
  const bool commits = verdict.committed() && !wrong;
  if (commits) {
    for (std::size_t b = 0; b < buckets_.size() && !verdict.warning; ++b) {
      verdict.warning = reducer_.warning(buckets_[b]);
    }
  }
  for (Bucket& bucket : buckets_) {
    if (commits) {
      reducer_.commit(bucket);
      if (parts_.before) parts_.before->commit(bucket);
    } else {
      reducer_.rollback(bucket);
    }
  }
  // Whoever reads the estimates, or writes into their buffers next, comes after them.
  path_.compute.wait_for(*path_.communication.mark());
  open_ = false;
  if (wrong) throw AgreedError(ExitCode::usage, *wrong);
  // Everybody has been told, and whoever called this now is.
  if (!verdict.superseded) silent_failure_ = 0;
  return verdict;
}

// Nobody else knows of this step: what it came to here is told when the next one opens.
Verdict StepTransaction::finish_silent(const StepClosing& closing) {
  thread_.drain();
  open_ = false;
  Verdict verdict;
  if (closing.end == StepEnd::abandoned) {
    verdict.abandoned = fmt::format("rank {}: {}", communicator_.rank(), closing.why);
    return verdict;
  }
  std::uint32_t place = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    bucket.undecoded.reset();
    for (std::size_t i = 0; i < bucket.slices.size(); ++i, ++place) {
      Slice& slice = bucket.slices[i];
      slice.absent = !used_[b][i] && !bucket.layout.rests(i);
      if (bucket.rests(i) || verdict.non_finite) continue;
      const at::Tensor own = bucket.gradient.narrow(0, slice.offset, slice.numel);
      if (at::isfinite(own).all().item<bool>()) continue;
      verdict.non_finite = slice.name;
      if (silent_failure_ == 0) silent_failure_ = 1 + place;
    }
  }
  return verdict;
}

void StepTransaction::cancel() {
  check(open_ && staged_ == 0, "a step that is cancelled has handed over nothing");
  thread_.drain();
  open_ = false;
}

}  // namespace thinwire
