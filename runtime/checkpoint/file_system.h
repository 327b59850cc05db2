// The calls on files that a checkpoint needs, as an interface, so that tests can see their order
// and make each of them fail.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "collectives/base/error.h"

namespace thinwire {

// The disk, a quota or the table of files is full.
struct NoSpaceError : IoError {
  using IoError::IoError;
};

// A file being written. If it is destroyed before `close`, errors of closing are not reported.
class OutputFile {
 public:
  virtual ~OutputFile() = default;
  // Appends all bytes.
  virtual void write(std::string_view bytes) = 0;
  // Returns when the bytes are on the disk.
  virtual void sync() = 0;
  virtual void close() = 0;
};

// Files and folders by path. Every call throws `IoError` with the path and the system's reason.
// Safe from several threads.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // Makes the folder and its missing parents, durably, unless it is there already.
  virtual void make_directories(const std::string& path) = 0;
  // Makes the file, or empties the one that is there.
  virtual std::unique_ptr<OutputFile> create(const std::string& path) = 0;
  // Replaces `to` in one step. Durable after `sync_directory` of its folder.
  virtual void rename(const std::string& from, const std::string& to) = 0;
  // Returns when the folder's list of names is on the disk.
  virtual void sync_directory(const std::string& path) = 0;
  // Removes a file or an empty folder.
  virtual void remove(const std::string& path) = 0;
  // The names of files and folders in it, sorted, without "." and "..".
  virtual std::vector<std::string> list_directory(const std::string& path) = 0;
  // The bytes of a regular file. Throws `DataError`, before anything is read, where it is something
  // else (a folder, a pipe, a device) or has more than `most` bytes.
  virtual std::string read_file(const std::string& path, std::int64_t most) = 0;
  virtual bool exists(const std::string& path) = 0;
  // Whether the name itself is a symbolic link, whatever it leads to.
  virtual bool is_link(const std::string& /*path*/) { return false; }
};

// The file system of the machine.
class PosixFileSystem final : public FileSystem {
 public:
  void make_directories(const std::string& path) override;
  std::unique_ptr<OutputFile> create(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void sync_directory(const std::string& path) override;
  void remove(const std::string& path) override;
  std::vector<std::string> list_directory(const std::string& path) override;
  std::string read_file(const std::string& path, std::int64_t most) override;
  bool exists(const std::string& path) override;
  bool is_link(const std::string& path) override;
};

// Writes `folder/name` so that a crash leaves the whole file or none under that name: into
// "<name>.partial", to the disk, renamed, and the folder's list of names to the disk.
void write_durably(FileSystem& files, const std::string& folder, const std::string& name,
                   std::string_view bytes);

}  // namespace thinwire
