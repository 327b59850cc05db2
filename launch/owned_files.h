// The files of a run, which are touched only while the output folder is the run's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "launch/run_lock.h"
#include "runtime/checkpoint/file_system.h"

namespace thinwire {

// The machine's. What would change something first asks `lock`, which is null on the ranks that
// have none and so touch nothing before rank 0 has; see RunLock::require_mine.
class OwnedFiles final : public FileSystem {
 public:
  explicit OwnedFiles(RunLock* lock) : lock_(lock) {}

  void make_directories(const std::string& path) override { owned().make_directories(path); }
  std::unique_ptr<OutputFile> create(const std::string& path) override {
    return owned().create(path);
  }
  void rename(const std::string& from, const std::string& to) override { owned().rename(from, to); }
  void remove(const std::string& path) override { owned().remove(path); }

  void sync_directory(const std::string& path) override { files_.sync_directory(path); }
  std::vector<std::string> list_directory(const std::string& path) override {
    return files_.list_directory(path);
  }
  std::string read_file(const std::string& path, std::int64_t most) override {
    return files_.read_file(path, most);
  }
  bool exists(const std::string& path) override { return files_.exists(path); }
  bool is_link(const std::string& path) override { return files_.is_link(path); }

 private:
  PosixFileSystem& owned() {
    if (lock_ != nullptr) lock_->require_mine();
    return files_;
  }

  RunLock* lock_;
  PosixFileSystem files_;
};

}  // namespace thinwire
