#include "tests/runtime/checkpoint/fake_file_system.h"

#include <filesystem>

#include "collectives/base/error.h"

namespace thinwire::testing {
namespace {

std::string parent_of(const std::string& path) {
  return std::filesystem::path(path).parent_path().string();
}
std::string name_of(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

class MemoryOutputFile final : public OutputFile {
 public:
  MemoryOutputFile(std::recursive_mutex& mutex, std::shared_ptr<MemoryFileSystem::Node> node)
      : mutex_(mutex), node_(std::move(node)) {}
  void write(std::string_view bytes) override {
    const std::lock_guard lock(mutex_);
    node_->bytes += bytes;
  }
  void sync() override {
    const std::lock_guard lock(mutex_);
    node_->synced_bytes = node_->bytes;
  }
  void close() override {}

 private:
  std::recursive_mutex& mutex_;
  std::shared_ptr<MemoryFileSystem::Node> node_;
};

class FaultyOutputFile final : public OutputFile {
 public:
  FaultyOutputFile(FaultyFileSystem& files, std::string path, std::unique_ptr<OutputFile> inner)
      : files_(files), path_(std::move(path)), inner_(std::move(inner)) {}
  void write(std::string_view bytes) override {
    inner_->write(bytes.substr(0, bytes.size() / 2));
    files_.enter("write", path_);
    inner_->write(bytes.substr(bytes.size() / 2));
  }
  void sync() override {
    files_.enter("sync", path_);
    inner_->sync();
  }
  void close() override {
    files_.enter("close", path_);
    inner_->close();
  }

 private:
  FaultyFileSystem& files_;
  std::string path_;
  std::unique_ptr<OutputFile> inner_;
};

}  // namespace

MemoryFileSystem::Node& MemoryFileSystem::node(const std::string& path) {
  const auto found = tree_.find(path);
  if (found == tree_.end()) throw IoError("cannot open " + path + ": No such file; check it");
  return *found->second;
}

void MemoryFileSystem::make_directories(const std::string& path) {
  const std::lock_guard lock(mutex_);
  for (std::string folder = path; !folder.empty() && folder != "/"; folder = parent_of(folder)) {
    if (tree_.contains(folder)) continue;
    const auto made = std::make_shared<Node>(Node{true, "", ""});
    tree_[folder] = made;
    synced_tree_[folder] = made;
  }
}

std::unique_ptr<OutputFile> MemoryFileSystem::create(const std::string& path) {
  const std::lock_guard lock(mutex_);
  node(parent_of(path));
  auto& file = tree_[path];
  if (!file) file = std::make_shared<Node>();
  file->bytes.clear();
  return std::make_unique<MemoryOutputFile>(mutex_, file);
}

void MemoryFileSystem::rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(mutex_);
  node(from);
  tree_[to] = tree_[from];
  tree_.erase(from);
}

void MemoryFileSystem::sync_directory(const std::string& path) {
  const std::lock_guard lock(mutex_);
  node(path);
  std::erase_if(synced_tree_, [&](const auto& item) { return parent_of(item.first) == path; });
  for (const auto& [name, file] : tree_) {
    if (parent_of(name) == path) synced_tree_[name] = file;
  }
}

void MemoryFileSystem::remove(const std::string& path) {
  const std::lock_guard lock(mutex_);
  if (node(path).is_directory && !list_directory(path).empty()) {
    throw IoError("cannot remove " + path + ": Directory not empty; check it");
  }
  tree_.erase(path);
}

std::vector<std::string> MemoryFileSystem::list_directory(const std::string& path) {
  const std::lock_guard lock(mutex_);
  node(path);
  std::vector<std::string> names;
  for (const auto& [name, file] : tree_) {
    if (parent_of(name) == path) names.push_back(name_of(name));
  }
  return names;
}

std::string MemoryFileSystem::read_file(const std::string& path, std::int64_t most) {
  const std::lock_guard lock(mutex_);
  const std::string& bytes = node(path).bytes;
  if (std::ssize(bytes) > most) throw DataError(path + ": is too large; use another");
  return bytes;
}

bool MemoryFileSystem::exists(const std::string& path) {
  const std::lock_guard lock(mutex_);
  return tree_.contains(path);
}

void MemoryFileSystem::crash(Crash kind) {
  if (kind == Crash::everything) return;
  if (kind == Crash::only_synced) tree_ = synced_tree_;
  for (auto& [name, file] : tree_) file->bytes = file->synced_bytes;
}

std::vector<std::string> MemoryFileSystem::all_files() {
  std::vector<std::string> paths;
  for (const auto& [path, file] : tree_) {
    if (!file->is_directory) paths.push_back(path);
  }
  return paths;
}

void FaultyFileSystem::enter(const std::string& call, const std::string& path) {
  const std::lock_guard lock(mutex_);
  const int number = static_cast<int>(calls_.size());
  calls_.push_back(call + " " + path);
  if ((number >= first_ && number <= last_) ||
      (!bad_path_.empty() && path.find(bad_path_) != std::string::npos)) {
    throw NoSpaceError("cannot " + call + " " + path +
                       ": No space left on device; free some space");
  }
}

void FaultyFileSystem::make_directories(const std::string& path) {
  enter("make_directories", path);
  inner_.make_directories(path);
}
std::unique_ptr<OutputFile> FaultyFileSystem::create(const std::string& path) {
  enter("create", path);
  return std::make_unique<FaultyOutputFile>(*this, path, inner_.create(path));
}
void FaultyFileSystem::rename(const std::string& from, const std::string& to) {
  enter("rename", from + " " + to);
  inner_.rename(from, to);
}
void FaultyFileSystem::sync_directory(const std::string& path) {
  enter("sync_directory", path);
  inner_.sync_directory(path);
}
void FaultyFileSystem::remove(const std::string& path) {
  enter("remove", path);
  inner_.remove(path);
}
std::vector<std::string> FaultyFileSystem::list_directory(const std::string& path) {
  enter("list_directory", path);
  return inner_.list_directory(path);
}
std::string FaultyFileSystem::read_file(const std::string& path, std::int64_t most) {
  enter("read_file", path);
  return inner_.read_file(path, most);
}
bool FaultyFileSystem::exists(const std::string& path) {
  enter("exists", path);
  return inner_.exists(path);
}

}  // namespace thinwire::testing
