// Where the tests of a binary write.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <system_error>

namespace thinwire::testing {

// While it lives, temporary files (of ::testing::TempDir, std::filesystem::temp_directory_path and
// child processes) go into a folder that it has made, and not beside those of other binaries, users
// and jobs. Made and destroyed in main, where there are no other threads.
class OwnFolder {
 public:
  OwnFolder() {
    std::string name = std::filesystem::temp_directory_path() / "thinwire-test-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) return;  // what needs one will say so
    path_ = name;
    for (const char* variable : {"TMPDIR", "TEST_TMPDIR"}) ::setenv(variable, name.c_str(), 1);
  }
  ~OwnFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  OwnFolder(const OwnFolder&) = delete;
  OwnFolder& operator=(const OwnFolder&) = delete;

 private:
  std::filesystem::path path_;
};

}  // namespace thinwire::testing
