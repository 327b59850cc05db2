// Threads that may not come to be.
#pragma once

#include <cstddef>
#include <system_error>
#include <thread>
#include <utility>

namespace thinwire {

namespace detail {
[[noreturn]] void cannot_make_thread(const std::system_error& error);
}

// A thread that runs `body`. Throws `Error` (exit 70) with what to do where the system gives none.
template <typename Body>
std::thread make_thread(Body&& body) {
  try {
    return std::thread(std::forward<Body>(body));
  } catch (const std::system_error& error) {
    detail::cannot_make_thread(error);
  }
}

// Throws what `make_thread` throws unless there can be `count` more threads at once. For those of
// libraries that end the process instead.
void require_threads(std::size_t count);

}  // namespace thinwire
