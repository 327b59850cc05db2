#include "runtime/telemetry/appended_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

namespace thinwire {
namespace {

FileDescriptor open_for_appending(const std::string& path, int flags) {
  constexpr int kAlways = O_WRONLY | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
  return FileDescriptor(uninterrupted([&] { return ::open(path.c_str(), flags | kAlways, 0666); }));
}

}  // namespace

void AppendedFile::create(const std::string& path) {
  path_ = path;
  started_ = make_anew();
}

void AppendedFile::replace(const std::string& path, std::string_view bytes) {
  path_ = path;
  instead_ = bytes;
  put_in_place();
}

// What is to be at the path, and not before it is on the disk.
bool AppendedFile::put_in_place() {
  const std::string beside = path_ + ".partial";
  ::unlink(beside.c_str());  // of a run that was killed
  file_ = open_for_appending(beside, O_CREAT | O_EXCL);
  size_ = 0;
  started_ = file_.open() ? write(*instead_) : say_failed(errno);
  if (started_ && uninterrupted([&] { return ::fsync(file_.get()); }) < 0) {
    started_ = say_failed(errno);
  }
  if (started_ && std::rename(beside.c_str(), path_.c_str()) < 0) started_ = say_failed(errno);
  if (started_) {
    instead_.reset();
  } else {
    ::unlink(beside.c_str());
  }
  return started_;
}

void AppendedFile::append(std::string_view record, const std::function<std::string()>& head) {
  if (instead_ && !put_in_place()) return;
  if (!is_in_place()) {
    before_anew_();
    if (!make_anew()) return;
  }
  started_ = true;
  if (size_ == 0 && !write(head())) return;
  if (write(record)) failed_ = false;
}

std::string AppendedFile::take_warning() {
  return std::exchange(warning_, {});
}

// Whether the file at the path is the one that was written to last.
bool AppendedFile::is_in_place() {
  struct stat mine {};
  struct stat there {};
  if (!file_.open() || ::fstat(file_.get(), &mine) < 0 || ::lstat(path_.c_str(), &there) < 0 ||
      mine.st_dev != there.st_dev || mine.st_ino != there.st_ino) {
    return false;
  }
  if (mine.st_size < size_) {
    warn(fmt::format("somebody cut off {}: {} from before are missing", path_, kind_));
  }
  size_ = mine.st_size;
  return true;
}

bool AppendedFile::make_anew() {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), error);
  struct stat there {};
  FileDescriptor file = open_for_appending(path_, O_CREAT | O_EXCL);
  const bool made = file.open();
  if (!made) {
    // Where somebody put another one, that is not emptied.
    if (errno != EEXIST || ::lstat(path_.c_str(), &there) < 0) return say_failed(errno);
    if (!S_ISREG(there.st_mode)) return say_failed(EEXIST);
    file = open_for_appending(path_, 0);
    if (!file.open() || ::fstat(file.get(), &there) < 0) return say_failed(errno);
  }
  file_ = std::move(file);
  size_ = there.st_size;
  if (started_) {
    warn(fmt::format("somebody {} {}; {} go on in {}", made ? "removed" : "replaced", path_, kind_,
                     made ? "a new one" : "what is there now"));
  }
  return true;
}

// All of the bytes or none.
bool AppendedFile::write(std::string_view bytes) {
  const std::int64_t before = size_;
  while (!bytes.empty()) {
    const ssize_t count =
        uninterrupted([&] { return ::write(file_.get(), bytes.data(), bytes.size()); });
    if (count < 0) {
      const int error = errno;
      if (size_ > before && ::ftruncate(file_.get(), before) == 0) size_ = before;
      return say_failed(error);
    }
    bytes.remove_prefix(static_cast<std::size_t>(count));
    size_ += count;
  }
  return true;
}

// Returns false.
bool AppendedFile::say_failed(int error) {
  if (!std::exchange(failed_, true)) {
    warn(fmt::format("cannot write {} to {}: {}; training goes on, {}", kind_, path_,
                     std::generic_category().message(error), loss_));
  }
  return false;
}

void AppendedFile::warn(const std::string& text) {
  warning_ += (warning_.empty() ? "" : "; ") + text;
}

}  // namespace thinwire
