// The files of a run, which it changes only while the output folder belongs to it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "launch/run_lock.h"
#include "runtime/checkpoint/file_system.h"

namespace thinwire {

// The machine's file system. Each call that would change something first asks `lock` whether the
// folder still belongs to this run (RunLock::require_mine). Only rank 0 has the lock. On the other
// ranks `lock` is null: they change nothing before rank 0 has.
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
