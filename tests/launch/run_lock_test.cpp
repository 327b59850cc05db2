#include "launch/run_lock.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"
#include "launch/held_folder.h"
#include "launch/owned_files.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

class RunLockTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/run_lock-" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    path_ = folder_ + "/run.lock";
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Of this process, but quick.
  static RunLockParts parts() {
    RunLockParts parts = system_lock_parts();
    parts.renewal = milliseconds(20);
    parts.settling = milliseconds(50);
    return parts;
  }
  // Of a run on another machine, which shares no flock with this one.
  static RunLockParts parts_elsewhere() {
    RunLockParts elsewhere = parts();
    elsewhere.self.host = "elsewhere";
    elsewhere.self.boot = "another boot";
    elsewhere.flock = [](int) { return 0; };
    return elsewhere;
  }
  static RunLockParts parts_without_flock() {
    RunLockParts without = parts();
    without.flock = [](int) { return ENOLCK; };
    return without;
  }

  // What taking the lock says; empty if it was taken. Waits for `patience`.
  static std::string refusal(RunLock& lock, milliseconds patience = seconds(10)) {
    const auto end = Clock::now() + patience;
    try {
      while (!lock.try_to_take()) {
        if (Clock::now() > end) return "waiting: " + lock.waiting();
        std::this_thread::sleep_for(milliseconds(5));
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::cannot_write);
      return error.what();
    }
    return {};
  }
  std::string refusal(RunLockParts with, milliseconds patience = seconds(10)) const {
    RunLock lock(folder_, std::move(with));
    return refusal(lock, patience);
  }

  std::string content() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& text) const { std::ofstream(path_) << text; }
  // As if the last sign of life were that old.
  void grow_old(seconds age) const { show_life(seconds(::time(nullptr)) - age); }
  void show_life(FileTime at) const {
    const auto whole = std::chrono::duration_cast<seconds>(at);
    struct timespec times[2] = {{0, UTIME_OMIT}, {whole.count(), (at - whole).count()}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), times, 0), 0);
  }
  // The lock file of a run that left without a word.
  void leave_lock_of(RunLockParts dead) const {
    std::string text;
    {
      RunLock lock(folder_, std::move(dead));
      ASSERT_TRUE(lock.try_to_take());
      text = content();
    }
    write(text);
  }

  std::string folder_;
  std::string path_;
};

TEST_F(RunLockTest, NamesItsOwnerAndIsGoneAtTheEnd) {
  {
    RunLock lock(folder_, parts());
    EXPECT_TRUE(lock.try_to_take());
    EXPECT_THAT(content(), HasSubstr(lock.token()));
    EXPECT_NO_THROW(lock.require_mine());
  }
  EXPECT_FALSE(fs::exists(path_));
}

TEST_F(RunLockTest, AnotherRunIsRefusedAndToldWhoHasIt) {
  RunLockParts first = parts();
  first.self.host = "node\x1b[31m7";
  first.self.since = "2026-11-30 12:00:00 UTC";
  RunLock lock(folder_, first);
  ASSERT_TRUE(lock.try_to_take());
  for (const RunLockParts& second : {parts(), parts_without_flock()}) {
    EXPECT_THAT(refusal(second),
                AllOf(HasSubstr("'" + folder_ + "' belongs to another run: process " +
                                std::to_string(::getpid()) +
                                " on host 'node\\x1b[31m7', since "
                                "2026-11-30 12:00:00 UTC;"),
                      HasSubstr("--output")));
  }
  EXPECT_NO_THROW(lock.require_mine());
}

TEST_F(RunLockTest, AFolderIsOneUnderAllItsNames) {
  fs::create_directory_symlink(folder_, folder_ + "/link");
  RunLock lock(folder_, parts());
  ASSERT_TRUE(lock.try_to_take());
  RunLock other(folder_ + "/./link/", parts());
  EXPECT_THAT(refusal(other), HasSubstr("belongs to another run"));
}

TEST_F(RunLockTest, TheLockOfAKilledProcessIsFreeAtOnce) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    RunLock lock(folder_, parts());
    const char taken = lock.try_to_take() ? 'y' : 'n';
    if (::write(ready[1], &taken, 1) == 1) ::pause();
    ::_exit(1);
  }
  char taken = 'n';
  ASSERT_EQ(::read(ready[0], &taken, 1), 1);
  EXPECT_EQ(taken, 'y');
  EXPECT_THAT(refusal(parts()), HasSubstr("process " + std::to_string(child)));
  ::kill(child, SIGSTOP);  // it lives
  EXPECT_THAT(refusal(parts()), HasSubstr("process " + std::to_string(child)));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  RunLock lock(folder_, parts());
  EXPECT_TRUE(lock.try_to_take());
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(RunLockTest, AnOwnerElsewhereIsWaitedForAMinuteByTheServersClock) {
  leave_lock_of(parts_elsewhere());
  RunLockParts mine = parts();
  // The server's clock is far behind this host's.
  FileTime now = std::chrono::hours(400'000);
  mine.server_time = [&](const std::string&) { return now; };
  show_life(now - milliseconds(10'500));
  RunLock lock(folder_, mine);
  EXPECT_FALSE(lock.try_to_take());
  EXPECT_THAT(lock.waiting(), AllOf(HasSubstr("on host 'elsewhere'"),
                                    HasSubstr("waiting 50 s for a sign of life")));
  now += seconds(45);
  EXPECT_FALSE(lock.try_to_take());
  now += seconds(10);
  EXPECT_EQ(refusal(lock), "");
  EXPECT_THAT(content(), HasSubstr(lock.token()));
}

TEST_F(RunLockTest, AnOwnerElsewhereThatShowsLifeIsLeftAlone) {
  leave_lock_of(parts_elsewhere());
  RunLock lock(folder_, parts());
  EXPECT_FALSE(lock.try_to_take());
  EXPECT_FALSE(lock.try_to_take());
  grow_old(seconds(-1));
  EXPECT_THAT(refusal(lock), AllOf(HasSubstr("on host 'elsewhere'"), HasSubstr("remove '")));
}

TEST_F(RunLockTest, ATimeInTheFutureIsWaitedForNoLonger) {
  leave_lock_of(parts_elsewhere());
  grow_old(-std::chrono::hours(1000));
  RunLockParts mine = parts();
  mine.dead_after = milliseconds(200);
  RunLock lock(folder_, mine);
  EXPECT_FALSE(lock.try_to_take());
  EXPECT_EQ(refusal(lock), "");
}

TEST_F(RunLockTest, WithoutFlockTheProcessTableDecides) {
  leave_lock_of(parts_without_flock());
  RunLockParts mine = parts_without_flock();
  EXPECT_THAT(refusal(mine), HasSubstr("belongs to another run"));
  mine.is_running = [](const LockOwner& owner) { return owner.process != ::getpid(); };
  EXPECT_EQ(refusal(mine), "");
  // A process of another container has another number here.
  leave_lock_of(parts_without_flock());
  mine.self.process_table = "another container's";
  EXPECT_THAT(refusal(mine, milliseconds(100)), HasSubstr("waiting: "));
}

TEST_F(RunLockTest, ANumberOfAProcessThatIsUsedAgainIsNotTheOwner) {
  const RunLockParts mine = parts();
  LockOwner before = mine.self;
  EXPECT_TRUE(mine.is_running(before));
  before.process_start -= 1;
  EXPECT_FALSE(mine.is_running(before));
  before.process = 1 << 30;
  EXPECT_FALSE(mine.is_running(before));
}

TEST_F(RunLockTest, WithoutFlockTheLastOfTwoThatTakeOverHasIt) {
  leave_lock_of(parts_without_flock());
  RunLockParts mine = parts_without_flock();
  mine.is_running = [](const LockOwner&) { return false; };
  mine.settling = milliseconds(500);
  RunLock first(folder_, mine);
  EXPECT_FALSE(first.try_to_take());
  EXPECT_THAT(first.waiting(), HasSubstr("making sure"));
  mine.self.token = "another";
  RunLock second(folder_, mine);
  EXPECT_FALSE(second.try_to_take());
  EXPECT_THAT(refusal(first), HasSubstr("another run"));
  EXPECT_EQ(refusal(second), "");
  EXPECT_THAT(content(), HasSubstr("another"));
}

TEST_F(RunLockTest, HowLongTheWritingTookIsNoTimeToSettle) {
  leave_lock_of(parts_without_flock());
  RunLockParts mine = parts_without_flock();
  mine.is_running = [](const LockOwner&) { return false; };
  mine.settling = milliseconds(500);
  mine.write = [](int descriptor, const LockOwner& owner) {
    std::this_thread::sleep_for(milliseconds(600));
    return lock_file::write(descriptor, owner);
  };
  RunLock lock(folder_, mine);
  ASSERT_FALSE(lock.try_to_take());
  EXPECT_EQ(refusal(lock), "");
}

TEST_F(RunLockTest, WhoHasTheFlockIsNotTheDeadOwnerWhoseTextIsStillThere) {
  leave_lock_of(parts());
  RunLockParts mine = parts();
  mine.flock = [](int) { return EWOULDBLOCK; };
  EXPECT_THAT(refusal(mine), HasSubstr("belongs to another run: process"));
  mine.is_running = [](const LockOwner&) { return false; };
  mine.settling = std::chrono::hours(1);
  EXPECT_THAT(refusal(mine, milliseconds(0)), HasSubstr("waiting: another run is taking"));
  mine.settling = milliseconds(50);
  EXPECT_THAT(refusal(mine), AllOf(HasSubstr("another run, which has locked"),
                                   ::testing::Not(HasSubstr("process"))));
}

TEST_F(RunLockTest, WhatAKilledRunLeftToAskForTheTimeIsUsedAgain) {
  const std::string left = path_ + ".time";
  std::ofstream(left) << "";
  fs::last_write_time(left, fs::file_time_type::clock::now() - std::chrono::hours(1));
  const FileTime before = std::chrono::system_clock::now().time_since_epoch();
  EXPECT_GT(parts().server_time(folder_), before - seconds(10));
  EXPECT_TRUE(fs::is_empty(folder_));
  std::ofstream(left) << "precious";
  EXPECT_THROW(parts().server_time(folder_), Error);
  EXPECT_EQ(fs::file_size(left), 8U);
}

TEST_F(RunLockTest, OfManyThatFindADeadLockExactlyOneTakesIt) {
  leave_lock_of(parts());
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> taken{0};
    std::atomic<int> through{0};
    std::vector<std::thread> starters;
    for (int i = 0; i < 6; ++i) {
      starters.emplace_back([&] {
        RunLock lock(folder_, parts());
        if (refusal(lock).empty()) ++taken;
        ++through;
        while (through < 6) std::this_thread::yield();
      });
    }
    for (auto& starter : starters) starter.join();
    EXPECT_EQ(taken, 1);
  }
}

TEST_F(RunLockTest, RunsThatEndAndStartNeverShareIt) {
  std::atomic<int> inside{0};
  std::atomic<int> taken{0};
  std::vector<std::thread> starters;
  for (int i = 0; i < 4; ++i) {
    starters.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        RunLock lock(folder_, parts());
        if (!refusal(lock).empty()) continue;
        EXPECT_EQ(++inside, 1);
        ++taken;
        --inside;
      }
    });
  }
  for (auto& starter : starters) starter.join();
  EXPECT_GT(taken, 0);
}

TEST_F(RunLockTest, WhatACrashLeftOfALockIsNoOwner) {
  const std::string whole = [&] {
    RunLock lock(folder_, parts());
    EXPECT_TRUE(lock.try_to_take());
    return content();
  }();
  for (const std::string& left :
       {std::string(), std::string(300, '\0'), whole.substr(0, 5), whole.substr(0, 60)}) {
    write(left);
    // A file that is so young may be about to be written.
    RunLockParts patient = parts();
    patient.settling = std::chrono::hours(1);
    EXPECT_THAT(refusal(patient, milliseconds(0)), HasSubstr("waiting: "));
    EXPECT_EQ(refusal(parts()), "");
  }
  // Without flock nothing says that its owner is dead but its age.
  write("");
  grow_old(seconds(30));
  EXPECT_THAT(refusal(parts_without_flock(), milliseconds(100)), HasSubstr("waiting: "));
  grow_old(seconds(61));
  EXPECT_EQ(refusal(parts_without_flock()), "");
}

TEST_F(RunLockTest, WhatIsInTheWayIsNeverWrittenToNorWaitedFor) {
  const auto in_the_way = [&](const std::string& what) {
    EXPECT_THAT(refusal(parts()),
                AllOf(HasSubstr("run.lock' is in the way"), HasSubstr("--output")))
        << what;
    ASSERT_TRUE(fs::symlink_status(path_).type() != fs::file_type::not_found) << what;
    fs::remove_all(path_);
  };
  write("my notes\n");
  in_the_way("another text");
  write(std::string(1 << 20, 'x'));
  in_the_way("a large text");
  fs::create_directory(path_);
  in_the_way("a folder");
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  in_the_way("a pipe");
  for (const std::string target : {"/dev/null", "/dev/zero", "nowhere", "precious"}) {
    std::ofstream(folder_ + "/precious") << "";
    fs::create_symlink(target, path_);
    in_the_way("a link to " + target);
    EXPECT_EQ(fs::file_size(folder_ + "/precious"), 0U);
  }
}

TEST_F(RunLockTest, AFolderThatCannotBeWrittenIsSaid) {
  EXPECT_THAT(
      [&] {
        RunLock lock("/proc/self", parts());
        return refusal(lock);
      }(),
      AllOf(HasSubstr("cannot make '/proc/self/run.lock'"), HasSubstr("--output")));
}

template <typename Condition>
bool soon(Condition condition) {
  const auto end = Clock::now() + seconds(20);
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

TEST_F(RunLockTest, ShowsSignsOfLife) {
  RunLock lock(folder_, parts());
  ASSERT_TRUE(lock.try_to_take());
  const auto recently = fs::file_time_type::clock::now() - seconds(500);
  grow_old(seconds(1000));
  EXPECT_TRUE(soon([&] { return fs::last_write_time(path_) > recently; }));
}

TEST_F(RunLockTest, IsMadeAnewWithItsFolder) {
  RunLock lock(folder_, parts());
  ASSERT_TRUE(lock.try_to_take());
  fs::remove_all(folder_);
  EXPECT_TRUE(soon([&] { return content().find(lock.token()) != std::string::npos; }));
  EXPECT_TRUE(soon([&] { return lock.take_warning().find("was removed") != std::string::npos; }));
  EXPECT_NO_THROW(lock.require_mine());
  EXPECT_THAT(refusal(parts()), HasSubstr("belongs to another run"));
}

TEST_F(RunLockTest, ARunThatLostItsFolderEnds) {
  RunLock lock(folder_, parts());
  ASSERT_TRUE(lock.try_to_take());
  fs::rename(path_, folder_ + "/away");
  leave_lock_of(parts_elsewhere());
  EXPECT_TRUE(soon([&] {
    try {
      lock.require_mine();
      return false;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::cannot_write);
      EXPECT_THAT(error.what(), HasSubstr("belongs to another run now: process"));
      return true;
    }
  }));
}

// Of a run that shows no sign of life by itself.
class SlowRunLockTest : public RunLockTest {
 protected:
  static RunLockParts slow() {
    RunLockParts slow = parts();
    slow.renewal = std::chrono::hours(1);
    return slow;
  }
  // What a step of the run says.
  std::string loss() {
    try {
      lock_->require_mine();
      return {};
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::cannot_write);
      return error.what();
    }
  }
  void SetUp() override {
    RunLockTest::SetUp();
    lock_.emplace(folder_, slow());
    ASSERT_TRUE(lock_->try_to_take());
    EXPECT_EQ(loss(), "");
  }

  std::optional<RunLock> lock_;
};

TEST_F(SlowRunLockTest, SeesAtOnceThatItsFolderWasRemovedAndIsAnotherRuns) {
  fs::remove_all(folder_);
  fs::create_directories(folder_);
  OwnedFiles files(&*lock_);
  {
    RunLock other(folder_, parts());
    ASSERT_TRUE(other.try_to_take());
    std::ofstream(folder_ + "/other") << "another run's";
    EXPECT_THROW(files.remove(folder_ + "/other"), Error);
    EXPECT_THROW(files.rename(folder_ + "/other", folder_ + "/mine"), Error);
    EXPECT_THROW(files.create(folder_ + "/other"), Error);
    EXPECT_THROW(files.make_directories(folder_ + "/mine"), Error);
    EXPECT_EQ(fs::file_size(folder_ + "/other"), 13U);
    EXPECT_THAT(loss(), HasSubstr("belongs to another run now: process"));
    EXPECT_TRUE(belongs_to_another(folder_, lock_->token()));
  }
  // It stays lost when the other one has ended, and is not taken again.
  EXPECT_THAT(loss(), HasSubstr("belongs to another run now: process"));
  EXPECT_FALSE(fs::exists(path_));
  EXPECT_FALSE(belongs_to_another(folder_, lock_->token()));
}

TEST_F(SlowRunLockTest, MakesTheLockOfARemovedFolderAnewAtOnce) {
  fs::remove_all(folder_);
  EXPECT_EQ(loss(), "");
  EXPECT_THAT(content(), HasSubstr(lock_->token()));
  EXPECT_THAT(refusal(parts()), HasSubstr("belongs to another run"));
  EXPECT_THAT(lock_->take_warning(), HasSubstr("was removed"));
  EXPECT_EQ(loss(), "");
  EXPECT_EQ(lock_->take_warning(), "");
}

TEST_F(SlowRunLockTest, SeesAtOnceThatAnotherRunHasWrittenIntoItsLock) {
  const std::string mine = content();
  std::string other = mine;
  other.replace(other.find(lock_->token()), lock_->token().size(), "another");
  write(other);
  EXPECT_THAT(loss(), HasSubstr("belongs to another run now"));
}

TEST_F(SlowRunLockTest, AFileThatAnotherRunHasLockedAndNotYetWrittenIsThatRuns) {
  fs::remove(path_);
  const FileDescriptor file = lock_file::open(path_, O_RDWR | O_CREAT | O_EXCL);
  ASSERT_EQ(::flock(file.get(), LOCK_EX), 0);
  EXPECT_THAT(loss(), HasSubstr("belongs to another run now: it has locked"));
  EXPECT_EQ(fs::file_size(path_), 0U);
}

TEST_F(RunLockTest, LeavesAnotherRunsLockWhereItIs) {
  {
    RunLockParts slow = parts();
    slow.renewal = seconds(100);
    RunLock lock(folder_, slow);
    ASSERT_TRUE(lock.try_to_take());
    fs::rename(path_, folder_ + "/away");
    leave_lock_of(parts_elsewhere());
  }
  EXPECT_THAT(content(), HasSubstr("elsewhere"));
}

// What each rank's taking threw, or "token" where it has the lock.
std::vector<std::string> take_together(const std::vector<std::string>& folders,
                                       const RunLockParts& parts, milliseconds timeout,
                                       std::vector<std::string>* said = nullptr) {
  std::vector<std::string> results(folders.size());
  run_ranks(static_cast<int>(folders.size()),
            [&](std::unique_ptr<Communicator> communicator) {
              const auto rank = static_cast<std::size_t>(communicator->rank());
              try {
                const HeldFolder held = take_run_lock(*communicator, folders[rank], parts,
                                                      {.say =
                                                           [&](const std::string& line) {
                                                             EXPECT_EQ(rank, 0U);
                                                             if (said) said->push_back(line);
                                                           },
                                                       .stop_requested = [] { return false; },
                                                       .have = ""});
                EXPECT_EQ(held.lock != nullptr, rank == 0);
                EXPECT_EQ(held.token, parts.self.token);
                EXPECT_FALSE(belongs_to_another(folders[rank], held.token));
                results[rank] = "taken";
                communicator->barrier()->wait();
              } catch (const AgreedError& error) {
                EXPECT_EQ(error.code(), ExitCode::cannot_write);
                results[rank] = error.what();
              }
            },
            {.timeout = timeout, .link = {}});
  return results;
}

TEST_F(RunLockTest, RanksWaitWithRankZeroLongerThanACollectiveMayTake) {
  leave_lock_of(parts_elsewhere());
  RunLockParts mine = parts();
  mine.dead_after = milliseconds(5000);
  std::vector<std::string> said;
  const auto results = take_together({folder_, folder_, folder_}, mine, milliseconds(4000), &said);
  EXPECT_THAT(results, ::testing::Each("taken"));
  ASSERT_FALSE(said.empty());
  EXPECT_THAT(said[0], HasSubstr("waiting"));
  EXPECT_LE(said.size(), 2U);
}

TEST_F(RunLockTest, AllRanksAreRefusedAlike) {
  RunLock lock(folder_, parts());
  ASSERT_TRUE(lock.try_to_take());
  const auto results = take_together({folder_, folder_}, parts(), seconds(60));
  EXPECT_THAT(results, ::testing::Each(HasSubstr("belongs to another run")));
}

TEST_F(RunLockTest, AnyRankThatIsAskedToStopEndsTheWait) {
  leave_lock_of(parts_elsewhere());
  RunLockParts mine = parts();
  mine.dead_after = seconds(10);
  for (int asked = 0; asked < 3; ++asked) {
    std::atomic<int> stopped{0};
    run_ranks(3,
              [&](std::unique_ptr<Communicator> communicator) {
                try {
                  take_run_lock(*communicator, folder_, mine,
                                {.say = [](const std::string&) {},
                                 .stop_requested = [&] { return communicator->rank() == asked; },
                                 .have = "no new checkpoint"});
                } catch (const AgreedError& error) {
                  EXPECT_EQ(error.code(), ExitCode::stopped_with_checkpoint);
                  EXPECT_THAT(error.what(), HasSubstr("waiting for '" + folder_ +
                                                      "': no new checkpoint; the same"));
                  ++stopped;
                }
              },
              {.timeout = seconds(20), .link = {}});
    EXPECT_EQ(stopped, 3) << "rank " << asked;
  }
}

TEST_F(RunLockTest, RanksThatCannotReadTheLockSayWhy) {
  const std::string other = folder_ + "/other";
  fs::create_directories(other + "/run.lock");  // to read it is an error
  const auto results = take_together({folder_, other}, parts(), milliseconds(4000));
  EXPECT_THAT(results, ::testing::Each(AllOf(HasSubstr("rank 1 cannot read '"),
                                             HasSubstr("Is a directory; check who may read"))));
}

TEST_F(RunLockTest, RanksWithAnotherFolderAreNamed) {
  const std::string other = folder_ + "/other";
  const auto results = take_together({folder_, other, folder_, other}, parts(), milliseconds(4000));
  EXPECT_THAT(results, ::testing::Each(AllOf(HasSubstr("ranks 1, 3 do not see in '"),
                                             HasSubstr("all machines share"))));
  EXPECT_FALSE(fs::exists(path_));
}

}  // namespace
}  // namespace thinwire
