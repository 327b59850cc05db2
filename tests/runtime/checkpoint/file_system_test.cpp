#include "runtime/checkpoint/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PosixFileSystemTest : public ::testing::Test {
 protected:
  PosixFileSystemTest() {
    std::string name = std::filesystem::temp_directory_path() / "thinwire-XXXXXX";
    root_ = ::mkdtemp(name.data());
  }
  ~PosixFileSystemTest() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, std::string_view bytes) {
    const auto file = files_.create(path);
    file->write(bytes);
    file->close();
  }

  PosixFileSystem files_;
  std::string root_;
};

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST_F(PosixFileSystemTest, WritesReadsListsRenamesAndRemoves) {
  const std::string folder = root_ + "/a/b/c";
  files_.make_directories(folder);
  files_.make_directories(folder);
  const std::string bytes("x\0y\n", 4);
  write_durably(files_, folder, "two", bytes);
  write_durably(files_, folder, "one", "");
  EXPECT_THAT(files_.list_directory(folder), ElementsAre("one", "two"));
  EXPECT_EQ(files_.read_file(folder + "/two", 1 << 30), bytes);
  EXPECT_EQ(files_.read_file(folder + "/one", 1 << 30), "");
  files_.rename(folder + "/two", folder + "/one");
  EXPECT_EQ(files_.read_file(folder + "/one", 1 << 30), bytes);
  EXPECT_FALSE(files_.exists(folder + "/two"));
  EXPECT_FALSE(files_.exists(folder + "/one/below-a-file"));
  files_.remove(folder + "/one");
  files_.remove(folder);
  EXPECT_FALSE(files_.exists(folder));
}

TEST_F(PosixFileSystemTest, CreateEmptiesAFileThatIsThere) {
  write(root_ + "/file", "long text");
  write(root_ + "/file", "new");
  EXPECT_EQ(files_.read_file(root_ + "/file", 1 << 30), "new");
}

TEST_F(PosixFileSystemTest, ErrorsNameThePathAndTheReason) {
  const std::string missing = root_ + "/missing";
  const auto names = [](const std::string& path) {
    return AllOf(HasSubstr(path), HasSubstr("No such file or directory; "));
  };
  EXPECT_THAT(message_of([&] { files_.read_file(missing, 1 << 30); }), names(missing));
  EXPECT_THAT(message_of([&] { files_.remove(missing); }), names(missing));
  EXPECT_THAT(message_of([&] { files_.list_directory(missing); }), names(missing));
  EXPECT_THAT(message_of([&] { files_.sync_directory(missing); }), names(missing));
  EXPECT_THAT(message_of([&] { files_.rename(missing, root_ + "/x"); }), names(missing));
  EXPECT_THAT(message_of([&] { files_.create(missing + "/file"); }), names(missing));
  EXPECT_THAT(message_of([&] { files_.read_file(root_, 1 << 30); }),
              HasSubstr(root_ + ": it is a folder"));
  write(root_ + "/file", "");
  EXPECT_THAT(message_of([&] { files_.make_directories(root_ + "/file/x"); }),
              HasSubstr("Not a directory"));
}

// The watchdog ends a test that waits for a pipe's writer.
TEST_F(PosixFileSystemTest, OnlyFilesAreRead) {
  const std::string pipe = root_ + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THROW(files_.read_file(pipe, 1 << 30), DataError);
  EXPECT_THAT(message_of([&] { files_.read_file(pipe, 1 << 30); }),
              HasSubstr(pipe + ": it is a pipe, not a file; "));
  const std::string link = root_ + "/link";
  std::filesystem::create_symlink("/dev/zero", link);
  EXPECT_THAT(message_of([&] { files_.read_file(link, 1 << 30); }),
              HasSubstr(link + ": it is a device, not a file; "));
}

TEST_F(PosixFileSystemTest, TheSizeIsLookedAtBeforeAnythingIsRead) {
  const std::string path = root_ + "/file";
  write(path, "12345");
  EXPECT_EQ(files_.read_file(path, 5), "12345");
  EXPECT_THAT(message_of([&] { files_.read_file(path, 4); }),
              HasSubstr(path + ": it has 5 bytes, more than the 4 of such a file; "));
  // Nothing on the disk, and more than any memory where it is read.
  constexpr std::int64_t kHuge = std::int64_t{1} << 43;
  std::filesystem::resize_file(path, 1 << 30);
  EXPECT_THROW(files_.read_file(path, 1 << 20), DataError);
  std::error_code error;
  std::filesystem::resize_file(path, kHuge, error);
  if (error) GTEST_SKIP() << "no files of 8 TiB here";
  EXPECT_THAT(message_of([&] { files_.read_file(path, kHuge); }),
              HasSubstr("are more than this host's memory; "));
}

TEST_F(PosixFileSystemTest, AFullDiskIsAnErrorThatSaysSo) {
  const auto file = files_.create("/dev/full");
  EXPECT_THAT(message_of([&] { file->write("x"); }),
              AllOf(HasSubstr("/dev/full: No space left on device"), HasSubstr("free some space")));
}

// A limit of 1000 bytes makes the first write short; the rest of it must be tried, and fail.
TEST_F(PosixFileSystemTest, AShortWriteIsContinued) {
  const std::string path = root_ + "/file";
  const auto previous_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit previous{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &previous), 0);
  rlimit small = previous;
  small.rlim_cur = 1000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = message_of([&] { write(path, std::string(1500, 'x')); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &previous), 0);
  std::signal(SIGXFSZ, previous_handler);
  EXPECT_THAT(message, HasSubstr("File too large"));
  EXPECT_EQ(std::filesystem::file_size(path), 1000U);
}

TEST_F(PosixFileSystemTest, SignalsDoNotDisturbAWrite) {
  const std::string path = root_ + "/pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  struct sigaction action {};
  struct sigaction previous {};
  action.sa_handler = [](int) {};  // without SA_RESTART: system calls are interrupted
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &previous), 0);

  std::string sent(1 << 20, '\0');
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 2654435761U >> 13);
  std::string received;
  std::thread reader([&] {
    std::ifstream pipe(path, std::ios::binary);
    std::string part(16384, '\0');
    do {
      // Slow enough that the writer waits, and is interrupted while it waits.
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      pipe.read(part.data(), static_cast<std::streamsize>(part.size()));
      received.append(part.data(), static_cast<std::size_t>(pipe.gcount()));
    } while (pipe);
  });
  std::atomic<bool> done = false;
  std::string message;
  std::thread writer([&] {
    message = message_of([&] { write(path, sent); });
    done = true;
  });
  const pthread_t target = writer.native_handle();
  while (!done) {
    ::pthread_kill(target, SIGUSR1);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  writer.join();
  reader.join();
  ::sigaction(SIGUSR1, &previous, nullptr);
  EXPECT_EQ(message, "nothing was thrown");
  EXPECT_TRUE(received == sent);
}

}  // namespace
}  // namespace thinwire
