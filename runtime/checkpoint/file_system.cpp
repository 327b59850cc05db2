#include "runtime/checkpoint/file_system.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/file_descriptor.h"
#include "collectives/base/memory.h"

namespace thinwire {
namespace {

std::string advice(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return "free some space or choose another folder";
    case EACCES:
    case EPERM:
    case EROFS:
      return "check the permissions of the folder or choose another";
    case ENOENT:
      return "check the path; on several machines the folder must be shared";
    default:
      return "check the folder and its disk";
  }
}

[[noreturn]] void fail(std::string_view what, const std::string& path, int error) {
  const std::string message = fmt::format("cannot {} {}: {}; {}", what, path,
                                          std::generic_category().message(error), advice(error));
  if (error == ENOSPC || error == EDQUOT) throw NoSpaceError(message);
  throw IoError(message);
}

void require_regular(const std::string& path, const struct stat& status) {
  if (S_ISREG(status.st_mode)) return;
  const char* const kind = S_ISDIR(status.st_mode)    ? "a folder"
                           : S_ISFIFO(status.st_mode) ? "a pipe"
                           : S_ISSOCK(status.st_mode) ? "a socket"
                                                      : "a device";
  throw DataError(fmt::format("{}: it is {}, not a file; use another", path, kind));
}

class PosixOutputFile final : public OutputFile {
 public:
  PosixOutputFile(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}

  void write(std::string_view bytes) override {
    while (!bytes.empty()) {
      const ssize_t count =
          uninterrupted([&] { return ::write(descriptor_.get(), bytes.data(), bytes.size()); });
      if (count < 0) fail("write", path_, errno);
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
  }
  void sync() override {
    if (uninterrupted([&] { return ::fsync(descriptor_.get()); }) < 0) fail("sync", path_, errno);
  }
  void close() override {
    // Linux closes the descriptor even when it reports EINTR: a second close could hit another
    // file.
    if (::close(descriptor_.release()) < 0 && errno != EINTR) fail("close", path_, errno);
  }

 private:
  std::string path_;
  FileDescriptor descriptor_;
};

}  // namespace

void PosixFileSystem::make_directories(const std::string& path) {
  if (exists(path)) return;
  std::string parent = std::filesystem::path(path).parent_path().string();
  if (parent == path) parent.clear();
  if (!parent.empty()) make_directories(parent);
  // Another rank or program may have made it meanwhile.
  if (::mkdir(path.c_str(), 0777) < 0 && errno != EEXIST) fail("make the folder", path, errno);
  sync_directory(parent.empty() ? "." : parent);
}

std::unique_ptr<OutputFile> PosixFileSystem::create(const std::string& path) {
  const int descriptor = uninterrupted(
      [&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666); });
  if (descriptor < 0) fail("create", path, errno);
  return std::make_unique<PosixOutputFile>(path, descriptor);
}

void PosixFileSystem::rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) < 0) fail("rename", from + " to " + to, errno);
}

void PosixFileSystem::sync_directory(const std::string& path) {
  const FileDescriptor folder(
      uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (folder.get() < 0) fail("open the folder", path, errno);
  // Some network file systems cannot sync a folder, and have nothing to sync.
  if (uninterrupted([&] { return ::fsync(folder.get()); }) < 0 && errno != EINVAL &&
      errno != ENOTSUP) {
    fail("sync the folder", path, errno);
  }
}

void PosixFileSystem::remove(const std::string& path) {
  if (std::remove(path.c_str()) < 0) fail("remove", path, errno);
}

std::vector<std::string> PosixFileSystem::list_directory(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(path, error);
  while (!error && entry != std::filesystem::directory_iterator()) {
    names.push_back(entry->path().filename().string());
    entry.increment(error);
  }
  if (error) fail("list the folder", path, error.value());
  std::sort(names.begin(), names.end());
  return names;
}

std::string PosixFileSystem::read_file(const std::string& path, std::int64_t most) {
  struct stat status {};
  if (::stat(path.c_str(), &status) < 0) fail("open", path, errno);
  // To open some devices is to do something with them.
  require_regular(path, status);
  // It may have been replaced meanwhile: without O_NONBLOCK a pipe would wait for a writer.
  const FileDescriptor file(uninterrupted(
      [&] { return ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC); }));
  if (file.get() < 0) fail("open", path, errno);
  if (::fstat(file.get(), &status) < 0) fail("read", path, errno);
  require_regular(path, status);
  const std::int64_t size = status.st_size;
  if (size > most) {
    throw DataError(fmt::format("{}: it has {} bytes, more than the {} of such a file; use another",
                                path, size, most));
  }
  if (size > memory_of_this_host()) {
    throw IoError(
        fmt::format("cannot read {}: its {} bytes are more than this host's memory; use "
                    "a host with more",
                    path, size));
  }
  std::string bytes(static_cast<std::size_t>(size), '\0');
  std::size_t used = 0;
  while (used < bytes.size()) {
    const ssize_t count =
        uninterrupted([&] { return ::read(file.get(), bytes.data() + used, bytes.size() - used); });
    if (count < 0) fail("read", path, errno);
    if (count == 0) break;
    used += static_cast<std::size_t>(count);
  }
  bytes.resize(used);
  return bytes;
}

bool PosixFileSystem::exists(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0) return true;
  if (errno != ENOENT && errno != ENOTDIR) fail("look at", path, errno);
  return false;
}

bool PosixFileSystem::is_link(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) return S_ISLNK(status.st_mode);
  if (errno != ENOENT && errno != ENOTDIR) fail("look at", path, errno);
  return false;
}

void write_durably(FileSystem& files, const std::string& folder, const std::string& name,
                   std::string_view bytes) {
  const std::string path = folder + "/" + name;
  const std::string partial = path + ".partial";
  const std::unique_ptr<OutputFile> file = files.create(partial);
  file->write(bytes);
  file->sync();
  file->close();
  files.rename(partial, path);
  files.sync_directory(folder);
}

}  // namespace thinwire
