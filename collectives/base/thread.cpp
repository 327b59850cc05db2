#include "collectives/base/thread.h"

#include <fmt/format.h>

#include <future>
#include <vector>

#include "collectives/base/error.h"

namespace thinwire {

void detail::cannot_make_thread(const std::system_error& error) {
  throw Error(ExitCode::internal,
              fmt::format("cannot make a thread: {}; raise `ulimit -u` or the container's limit on "
                          "processes, lower `ulimit -s`, or use fewer ranks",
                          error.code().message()));
}

void require_threads(std::size_t count) {
  std::promise<void> all_made;
  const std::shared_future<void> end = all_made.get_future().share();
  std::vector<std::thread> threads;
  const auto join = [&] {
    all_made.set_value();
    for (auto& thread : threads) thread.join();
  };
  threads.reserve(count);
  try {
    while (threads.size() < count) threads.push_back(make_thread([end] { end.wait(); }));
  } catch (...) {
    join();
    throw;
  }
  join();
}

}  // namespace thinwire
