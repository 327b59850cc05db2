// What the calls of the system on files and sockets need.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <utility>

namespace thinwire {

// A file descriptor that is closed with its owner.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int value) : value_(value) {}
  ~FileDescriptor() { reset(); }
  FileDescriptor(FileDescriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      reset();
      value_ = std::exchange(other.value_, -1);
    }
    return *this;
  }
  int get() const { return value_; }
  bool open() const { return value_ >= 0; }
  // Whoever takes it closes it.
  int release() { return std::exchange(value_, -1); }
  void reset() {
    const int code = errno;  // of what made this one useless
    if (value_ >= 0) ::close(release());
    errno = code;
  }

 private:
  int value_ = -1;
};

// Repeats a system call that a signal interrupted.
template <typename Call>
auto uninterrupted(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

}  // namespace thinwire
