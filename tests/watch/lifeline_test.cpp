// Several ends of a lifeline in one process, and ends in processes that are killed and stopped.
#include "runtime/watch/lifeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <mutex>
#include <thread>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/net/socket.h"
#include "collectives/threads/thread_communicator.h"

namespace thinwire {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

// Hang limits, not expectations.
constexpr seconds kSoon{30};
constexpr milliseconds kNever{60000};

// What a test says a rank is doing.
class Said {
 public:
  void set(Activity activity) {
    const std::lock_guard lock(mutex_);
    activity_ = std::move(activity);
  }
  Lifeline::Parts parts(milliseconds timeout) {
    return {.timeout = timeout,
            .look =
                [this] {
                  const std::lock_guard lock(mutex_);
                  return activity_;
                },
            .on_lost = [this](const std::string&) { ++losses; }};
  }

  std::atomic<int> losses{0};

 private:
  std::mutex mutex_;
  Activity activity_;
};

Activity in_step(std::int64_t step, std::int64_t operations, const std::string& operation) {
  return {.step = step, .doing = "computing", .operations = operations, .operation = operation};
}

Activity waiting(Activity activity, milliseconds how_long) {
  activity.waiting = how_long;
  return activity;
}

std::string reason_of(Lifeline& end) {
  return end.lost(Clock::now() + kSoon).value_or("nothing was lost");
}

// Of a job that knows a secret, on this machine alone.
Lifeline::Access access_of(int size, const std::string& secret = "sixteen letters") {
  return {{net::key_from_secret(secret), "a job", size}, "127.0.0.1"};
}

struct Star {
  explicit Star(int size, milliseconds timeout) : said(static_cast<std::size_t>(size)) {
    ends.push_back(Lifeline::host(access_of(size), said[0].parts(timeout)));
    for (int rank = 1; rank < size; ++rank) {
      ends.push_back(Lifeline::join(access_of(size).identity, rank, ends[0]->invitation(),
                                    said[static_cast<std::size_t>(rank)].parts(timeout)));
    }
  }
  std::vector<Said> said;
  std::vector<std::unique_ptr<Lifeline>> ends;
};

// Gives reports the time to arrive.
void let_reports_pass() {
  std::this_thread::sleep_for(milliseconds(600));
}

TEST(Lifeline, ADeathIsNamedWithWhatBothWereDoing) {
  Star star(4, kNever);
  star.said[3].set(in_step(41, 811, "all_gather of bucket 1"));
  star.said[1].set(waiting(in_step(41, 812, "all_to_all of bucket 2"), milliseconds(300)));
  let_reports_pass();
  star.ends[3].reset();
  for (const int rank : {0, 1, 2}) {
    const std::string reason = reason_of(*star.ends[static_cast<std::size_t>(rank)]);
    EXPECT_THAT(reason,
                HasSubstr("rank 3 died (its connection closed), last seen: step 41, computing "
                          "after all_gather of bucket 1 (operation 811)"));
  }
  EXPECT_THAT(reason_of(*star.ends[1]),
              HasSubstr("; this rank: step 41, waiting 0.3 s in all_to_all of bucket 2 "
                        "(operation 812)"));
}

TEST(Lifeline, TheDeathOfTheHostIsNamedByAll) {
  Star star(3, kNever);
  star.ends[0].reset();
  for (const int rank : {1, 2}) {
    EXPECT_THAT(reason_of(*star.ends[static_cast<std::size_t>(rank)]),
                HasSubstr("rank 0, which hosts the lifeline, died"));
  }
}

TEST(Lifeline, AGoodbyeIsNoDeath) {
  Star star(4, kNever);
  star.ends[2]->goodbye();
  star.ends[2].reset();
  star.ends[0]->goodbye();
  star.ends[0].reset();
  EXPECT_EQ(star.ends[1]->lost(Clock::now() + seconds(1)), std::nullopt);
  EXPECT_EQ(star.ends[3]->lost(Clock::now() + milliseconds(1)), std::nullopt);
  for (const Said& said : star.said) EXPECT_EQ(said.losses, 0);
}

TEST(Lifeline, AFailureIsToldWithItsReasonAndNotAsADeath) {
  for (const std::size_t failing : {0U, 2U}) {
    Star star(3, kNever);
    star.ends[failing]->fail("libtorch: no memory\nleft");
    star.ends[failing].reset();
    for (std::size_t rank = 0; rank < 3; ++rank) {
      if (rank == failing) continue;
      const std::string reason = reason_of(*star.ends[rank]);
      EXPECT_THAT(reason, HasSubstr("failed: libtorch: no memory left"));
      EXPECT_THAT(reason, HasSubstr("rank " + std::to_string(failing)));
      EXPECT_THAT(reason, Not(HasSubstr("died")));
    }
  }
}

TEST(Lifeline, TheFirstLossIsTheOnlyOne) {
  Star star(4, kNever);
  star.ends[2]->fail("the first");
  star.ends[2].reset();
  for (const std::size_t rank : {0U, 1U, 3U}) reason_of(*star.ends[rank]);
  star.ends[3].reset();
  star.ends[0].reset();
  EXPECT_THAT(reason_of(*star.ends[1]), HasSubstr("the first"));
  let_reports_pass();
  EXPECT_EQ(star.said[1].losses, 1);
}

TEST(Lifeline, TheOneThatDoesNotComeIsBehind) {
  Star star(4, milliseconds(1500));
  for (Said& said : star.said) {
    said.set(waiting(in_step(7, 31, "all_reduce of bucket 0"), milliseconds(200)));
  }
  Activity late = in_step(7, 30, "barrier");
  late.doing = "writing a checkpoint";
  star.said[2].set(late);
  let_reports_pass();
  star.said[1].set(waiting(in_step(7, 31, "all_reduce of bucket 0"), milliseconds(1600)));
  for (auto& end : star.ends) {
    const std::string reason = reason_of(*end);
    EXPECT_THAT(reason, HasSubstr("all_reduce of bucket 0 of step 7 did not end within 1.5 s: rank "
                                  "2 is behind: step 7, writing a checkpoint after barrier "
                                  "(operation 30)"));
    EXPECT_THAT(reason, Not(HasSubstr("rank 3")));
  }
}

TEST(Lifeline, OneThatCameAndDoesNotWaitIsNamed) {
  Star star(3, milliseconds(1500));
  star.said[0].set(in_step(7, 31, "all_reduce"));
  star.said[1].set(in_step(7, 31, "all_reduce"));
  star.said[2].set(waiting(in_step(7, 31, "all_reduce"), milliseconds(200)));
  let_reports_pass();
  star.said[0].set(waiting(in_step(7, 31, "all_reduce"), milliseconds(1600)));
  EXPECT_THAT(reason_of(*star.ends[0]),
              HasSubstr("did not end within 1.5 s: rank 1 does not wait: step 7, computing"));
}

TEST(Lifeline, AStrangerIsNotLetIn) {
  Said said;
  const auto host = Lifeline::host(access_of(3), said.parts(kNever));
  const auto join = [&](const net::JobIdentity& identity, int rank, milliseconds timeout) {
    return Lifeline::join(identity, rank, host->invitation(), said.parts(timeout));
  };
  const auto& identity = access_of(3).identity;
  EXPECT_THROW(join(access_of(3, "another secret").identity, 1, milliseconds(300)), IoError);
  // It did not take the place of the rank.
  const auto right = join(identity, 1, kNever);
  // Nor is a rank let in that is there already, or that is none.
  for (const int rank : {1, 0, 3}) {
    EXPECT_THROW(join(identity, rank, milliseconds(300)), IoError);
  }
  EXPECT_EQ(host->lost(Clock::now() + milliseconds(300)), std::nullopt);
}

TEST(Lifeline, NobodyListensOnceAllHaveCome) {
  Star star(3, kNever);
  const std::string invitation = star.ends[0]->invitation();
  const int port = std::stoi(invitation);
  EXPECT_EQ(invitation, std::to_string(port) + " 127.0.0.1");
  // Rank 0 closes its door after it has let in the last one.
  const auto deadline = Clock::now() + kSoon;
  const auto answers = [&] {
    try {
      net::connect_to("127.0.0.1", port, deadline);
      return true;
    } catch (const PeerLost&) {
      return false;
    }
  };
  while (answers()) ASSERT_LT(Clock::now(), deadline);
}

// As many as the system lets one make: none of them costs rank 0 more than a place among 64.
TEST(Lifeline, AFloodOfLinesIsNotRead) {
  Said said;
  const auto host = Lifeline::host(access_of(3), said.parts(kNever));
  const int port = std::stoi(host->invitation());
  std::vector<net::Descriptor> flood;
  const std::string newlines(1 << 16, '\n');
  for (int i = 0; i < 300; ++i) {
    flood.push_back(net::connect_to("127.0.0.1", port, Clock::now() + kSoon));
    [[maybe_unused]] const auto sent =
        ::send(flood.back().get(), newlines.data(), newlines.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  const auto& identity = access_of(3).identity;
  const auto one = Lifeline::join(identity, 1, host->invitation(), said.parts(kNever));
  const auto two = Lifeline::join(identity, 2, host->invitation(), said.parts(kNever));
  EXPECT_EQ(host->lost(Clock::now() + milliseconds(300)), std::nullopt);
}

TEST(Lifeline, OverACommunicator) {
  std::vector<Said> said(3);
  run_ranks(3, [&](std::unique_ptr<Communicator> communicator) {
    const auto rank = static_cast<std::size_t>(communicator->rank());
    auto parts = said[rank].parts(kNever);
    parts.on_lost = [&](const std::string& reason) { communicator->abort(reason); };
    const auto lifeline = make_lifeline(*communicator, access_of(3), parts);
    communicator->barrier()->wait();
    if (rank == 1) return lifeline->fail("bad luck");
    try {
      communicator->barrier()->wait();
      ADD_FAILURE() << "a barrier without rank 1";
    } catch (const PeerLost& error) {
      EXPECT_THAT(std::string(error.what()), HasSubstr("rank 1 failed: bad luck"));
    }
  });
}

// A rank in a process of its own that only reports. To be made before this process has threads:
// suites of this name run before all others.
class RankProcess {
 public:
  RankProcess(int rank, int size, milliseconds timeout) {
    if (::pipe(invited_) != 0 || ::pipe(ready_) != 0) throw Bug("no pipe");
    child_ = ::fork();
    if (child_ == 0) run(rank, size, timeout);
  }
  ~RankProcess() {
    kill(SIGKILL);
    ::waitpid(child_, nullptr, 0);
    for (const int end : {invited_[0], invited_[1], ready_[0], ready_[1]}) ::close(end);
  }
  RankProcess(const RankProcess&) = delete;
  RankProcess& operator=(const RankProcess&) = delete;

  // Returns when it has joined and reported.
  void join(const std::string& invitation) {
    const std::string text = invitation + "\n";
    ASSERT_EQ(::write(invited_[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
    char byte = 0;
    ASSERT_EQ(::read(ready_[0], &byte, 1), 1);
  }
  void kill(int number) { ::kill(child_, number); }

 private:
  [[noreturn]] void run(int rank, int size, milliseconds timeout) {
    std::string invitation;
    for (char byte = 0; ::read(invited_[0], &byte, 1) == 1 && byte != '\n';) invitation += byte;
    Said said;
    said.set(in_step(5, 20, "barrier"));
    const auto end =
        Lifeline::join(access_of(size).identity, rank, invitation, said.parts(timeout));
    let_reports_pass();
    [[maybe_unused]] const auto written = ::write(ready_[1], "x", 1);
    while (true) ::pause();
  }

  int invited_[2];
  int ready_[2];
  pid_t child_ = -1;
};

TEST(LifelineDeathTest, AKilledOneIsNamed) {
  RankProcess child(1, 2, kNever);
  Said said;
  const auto host = Lifeline::host(access_of(2), said.parts(kNever));
  child.join(host->invitation());
  child.kill(SIGKILL);
  EXPECT_THAT(reason_of(*host),
              HasSubstr("rank 1 died (its connection closed), last seen: step 5"));
}

TEST(LifelineDeathTest, AStoppedOneIsNamedAfterTheTimeoutByAll) {
  constexpr milliseconds timeout{2000};
  RankProcess child(1, 3, timeout);
  std::vector<Said> said(3);
  const auto host = Lifeline::host(access_of(3), said[0].parts(timeout));
  const auto peer =
      Lifeline::join(access_of(3).identity, 2, host->invitation(), said[2].parts(timeout));
  child.join(host->invitation());
  EXPECT_EQ(host->lost(Clock::now() + milliseconds(500)), std::nullopt);
  const auto stopped = Clock::now();
  child.kill(SIGSTOP);
  for (Lifeline* end : {host.get(), peer.get()}) {
    EXPECT_THAT(reason_of(*end), HasSubstr("rank 1 has not been heard from for 2."));
  }
  // It may have reported up to half a second before it was stopped.
  EXPECT_GE(Clock::now() - stopped, timeout - milliseconds(600));
}

}  // namespace
}  // namespace thinwire
