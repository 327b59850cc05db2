// File systems for tests: one in memory that knows what a crash would lose, and one that fails.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/checkpoint/file_system.h"

namespace thinwire::testing {

// What is left after a crash of what was never synced.
enum class Crash {
  everything,   // all of it
  only_synced,  // nothing: neither unsynced bytes nor names in unsynced folders
  only_names,   // renames reached the disk, the bytes of unsynced files did not
};

// Files in memory. Remembers for each file and folder what is surely on the disk.
class MemoryFileSystem final : public FileSystem {
 public:
  void make_directories(const std::string& path) override;
  std::unique_ptr<OutputFile> create(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void sync_directory(const std::string& path) override;
  void remove(const std::string& path) override;
  std::vector<std::string> list_directory(const std::string& path) override;
  std::string read_file(const std::string& path, std::int64_t most) override;
  bool exists(const std::string& path) override;

  void crash(Crash kind);
  // The file's bytes, to be damaged. The file must exist.
  std::string& bytes(const std::string& path) { return node(path).bytes; }
  // The paths of all files.
  std::vector<std::string> all_files();

  struct Node {
    bool is_directory = false;
    std::string bytes;
    std::string synced_bytes;
  };

 private:
  using Tree = std::map<std::string, std::shared_ptr<Node>>;
  Node& node(const std::string& path);

  std::recursive_mutex mutex_;
  Tree tree_;
  Tree synced_tree_;
};

// Passes calls on, writes them down, and lets some fail as if the disk were full. A write that
// fails has written half of its bytes.
class FaultyFileSystem final : public FileSystem {
 public:
  explicit FaultyFileSystem(FileSystem& inner) : inner_(inner) {}

  // Calls are counted from 0.
  void fail_only(int call) { first_ = last_ = call; }
  void fail_from(int call) {
    first_ = call;
    last_ = 1 << 30;
  }
  // Every call on a path that holds `text`.
  void fail_paths_with(const std::string& text) { bad_path_ = text; }

  // "<call> <path>", in order.
  const std::vector<std::string>& calls() const { return calls_; }

  void make_directories(const std::string& path) override;
  std::unique_ptr<OutputFile> create(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void sync_directory(const std::string& path) override;
  void remove(const std::string& path) override;
  std::vector<std::string> list_directory(const std::string& path) override;
  std::string read_file(const std::string& path, std::int64_t most) override;
  bool exists(const std::string& path) override;

  // Counts a call; throws if it is one that fails.
  void enter(const std::string& call, const std::string& path);

 private:
  FileSystem& inner_;
  std::mutex mutex_;
  std::vector<std::string> calls_;
  int first_ = -1;
  int last_ = -1;
  std::string bad_path_;
};

}  // namespace thinwire::testing
