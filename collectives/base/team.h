// Threads among which a rank's arithmetic is shared out.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace thinwire {

// A caller's thread and helpers, which take parts of its work and otherwise wait. They run wherever
// the thread that makes the team may run.
class Team {
 public:
  // `size`: threads, the caller's included; at least 1. Throws `Error` where the system gives none.
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return 1 + static_cast<int>(helpers_.size()); }

  // Calls body(0), ..., body(parts - 1), each once, on whichever thread is free, and returns when
  // all have returned. The first exception is thrown on; parts that had not begun by then are left
  // out. Called while it shares out other work, from a part of that too, it runs all parts where it
  // is called.
  void share(std::int64_t parts, const std::function<void(std::int64_t)>& body);

 private:
  // The gate's bits: how many helpers are inside, whether it is open, and the number of its
  // opening.
  static constexpr std::uint32_t kInside = 0x7f;
  static constexpr std::uint32_t kOpen = 0x80;
  static constexpr std::uint32_t kOpening = 0x100;

  void help();
  void take_parts();
  void end();

  std::atomic<bool> busy_ = false;
  std::atomic<std::uint32_t> gate_ = 0;
  std::atomic<bool> ends_ = false;
  // Of the work inside; written before the gate opens.
  const std::function<void(std::int64_t)>* body_ = nullptr;
  std::int64_t parts_ = 0;
  std::atomic<std::int64_t> next_ = 0;
  std::mutex failed_;
  std::exception_ptr failure_;
  std::vector<std::thread> helpers_;
};

// Calls body(begin, end) with consecutive ranges that together are [0, count), none shorter than
// `least` unless it is the only one, on the threads of `team`; on this one alone where there is
// none. Which ranges they are depends on the team's size and on nothing else.
template <typename Body>
void share_out(Team* team, std::int64_t count, std::int64_t least, const Body& body) {
  const std::int64_t most = count / least;
  if (team == nullptr || team->size() == 1 || most < 2) {
    if (count > 0) body(std::int64_t{0}, count);
    return;
  }
  // Several for each thread, as one may be late.
  constexpr std::int64_t each = 4;
  const std::int64_t wanted = each * team->size();
  const std::int64_t parts = most < wanted ? most : wanted;
  team->share(parts,
              [&](std::int64_t part) { body(count * part / parts, count * (part + 1) / parts); });
}

}  // namespace thinwire
