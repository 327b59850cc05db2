#include "launch/rank_watch.h"

#include <fmt/format.h>

#include <cstdio>

#include "collectives/base/error.h"
#include "launch/exit.h"

namespace thinwire {
namespace {

// A communicator may see a loss before the lifeline does; that one knows more.
constexpr std::chrono::milliseconds kPatience{1500};

}  // namespace

std::string RankWatch::connect(Communicator& communicator, const Lifeline::Access& access,
                               std::chrono::milliseconds timeout) {
  try {
    lifeline_ = make_lifeline(communicator, access,
                              {.timeout = timeout,
                               .look = [this] { return parts_.recorder.activity(); },
                               .on_lost = [this](const std::string& reason) { on_lost(reason); }});
    return {};
  } catch (const AgreedError& error) {
    return fmt::format("warning: no lifeline: {}; until then a rank that is lost is noticed late",
                       error.what());
  }
}

void RankWatch::goodbye() {
  if (lifeline_) lifeline_->goodbye();
}

void RankWatch::rethrow(const std::exception& error) {
  const std::string position = "; this rank: " + describe(parts_.recorder.activity());
  if (dynamic_cast<const PeerLost*>(&error)) {
    if (lifeline_) {
      if (const auto reason = lifeline_->lost(Clock::now() + kPatience)) {
        write(*reason);
        throw PeerLostSaid(*reason);
      }
      lifeline_->goodbye();
    }
    write(error.what());
    throw PeerLost(error.what() + position);
  }
  // What all ranks throw alike needs no telling.
  const bool shared =
      dynamic_cast<const AgreedError*>(&error) || dynamic_cast<const RanksDisagree*>(&error);
  if (lifeline_ && shared) lifeline_->goodbye();
  if (lifeline_ && !shared) lifeline_->fail(message(error));
  write(message(error));
  throw;
}

void RankWatch::on_lost(const std::string& reason) {
  // One call, so that the lines of ranks do not mix.
  const std::string line =
      fmt::format("thinwire: rank {}: {}; continue with --resume auto\n", parts_.rank, reason);
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  parts_.signals.give_up();
  parts_.abort(reason);
  write(reason);
}

// Once: the first reason is the cause. A run that has not begun has nothing to tell.
void RankWatch::write(const std::string& reason) {
  const std::lock_guard lock(writing_);
  if (written_ || parts_.recorder.activity().step == 0) return;
  written_ = true;
  if (!parts_.owns_output()) return;
  try {
    PosixFileSystem files;
    write_flight(files, parts_.output, parts_.rank, parts_.recorder, reason);
  } catch (const std::exception& error) {
    const std::string line = fmt::format("thinwire: rank {}: warning: no flight record: {}\n",
                                         parts_.rank, message(error));
    std::fputs(line.c_str(), stderr);
  }
}

}  // namespace thinwire
