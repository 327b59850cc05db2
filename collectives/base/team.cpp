#include "collectives/base/team.h"

#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/thread.h"

namespace thinwire {
namespace {

// Looks before a thread sleeps or gives way, some 20 microseconds: a bucket's segments follow each
// other faster than the system wakes a thread.
constexpr int kLooks = 1000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Team::Team(int size) {
  check(size >= 1 && size <= static_cast<int>(kInside), "a team has 1 to 127 threads");
  try {
    while (this->size() < size) helpers_.push_back(make_thread([this] { help(); }));
  } catch (...) {
    end();
    throw;
  }
}

Team::~Team() {
  end();
}

void Team::end() {
  ends_ = true;
  gate_.fetch_add(kOpening);
  gate_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void Team::share(std::int64_t parts, const std::function<void(std::int64_t)>& body) {
  if (helpers_.empty() || parts < 2 || busy_.exchange(true)) {
    for (std::int64_t part = 0; part < parts; ++part) body(part);
    return;
  }
  body_ = &body;
  parts_ = parts;
  next_ = 0;
  gate_ += kOpening | kOpen;
  gate_.notify_all();
  take_parts();
  // Whoever has not come by now is not waited for.
  gate_ -= kOpen;
  for (int looks = 0; (gate_.load() & kInside) != 0; ++looks) {
    if (looks < kLooks) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  const std::exception_ptr failure = std::exchange(failure_, nullptr);
  busy_ = false;
  if (failure) std::rethrow_exception(failure);
}

void Team::help() {
  std::uint32_t seen = 0;
  int looks = 0;
  while (!ends_) {
    std::uint32_t gate = gate_;
    const std::uint32_t opening = gate / kOpening;
    if ((gate & kOpen) != 0 && opening != seen) {
      if (!gate_.compare_exchange_weak(gate, gate + 1)) continue;
      take_parts();
      --gate_;
      seen = opening;
      looks = 0;
    } else if (looks < kLooks) {
      ++looks;
      pause();
    } else {
      gate_.wait(gate);
      looks = 0;
    }
  }
}

void Team::take_parts() {
  for (std::int64_t part = next_++; part < parts_; part = next_++) {
    try {
      (*body_)(part);
    } catch (...) {
      const std::lock_guard lock(failed_);
      if (!failure_) failure_ = std::current_exception();
      next_ = parts_;
    }
  }
}

}  // namespace thinwire
