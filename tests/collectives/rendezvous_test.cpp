// How ranks over sockets find each other, and whom they turn away.
#include "collectives/sockets/rendezvous.h"

#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/net/call.h"
#include "collectives/net/door.h"
#include "collectives/net/socket.h"
#include "tests/support/notebook.h"
#include "tests/support/store.h"

namespace thinwire {
namespace {

using namespace std::chrono_literals;
using sockets::Contact;
using ::testing::HasSubstr;
using testing::Notebook;
using testing::StoreServer;

SocketOptions options_of(int rank, int size, std::chrono::milliseconds timeout = 60s) {
  SocketOptions options;
  options.rank = rank;
  options.size = size;
  options.timeout = timeout;
  options.identity.job = "job";
  options.identity.key = net::key_from_secret("sixteen letters");
  return options;
}

// A port that was free a moment ago.
int free_port(const std::string& address = "127.0.0.1") {
  return net::local_port(net::listen_on(address, 0));
}

// "71: what was said"; empty where all went well.
std::string error_of(const std::function<void()>& body) {
  try {
    body();
    return "";
  } catch (const Error& error) {
    return std::to_string(static_cast<int>(error.code())) + ": " + error.what();
  }
}

// The ranks of `all`, each a thread: what each says.
std::vector<std::string> errors_of(const std::vector<SocketOptions>& all) {
  std::vector<std::string> errors(all.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < all.size(); ++i) {
    threads.emplace_back([&, i] {
      errors[i] = error_of([&] {
        const auto ranks = make_socket_communicator(all[i]);
        ranks->barrier()->wait();
      });
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

// Two ranks meet and say hello.
void meet(const std::function<std::unique_ptr<Communicator>(int rank)>& make) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        EXPECT_EQ(all_reduce_max(*make(rank), {rank})[0], 1);
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

// --- Who comes, and who does not ----------------------------------------------------------------

TEST(Rendezvous, NamesWhoDidNotComeOnEveryRank) {
  const int port = free_port();
  std::vector<SocketOptions> all{options_of(0, 4, 2000ms), options_of(2, 4, 2000ms)};
  for (auto& options : all) options.meet_port = port;
  for (const std::string& error : errors_of(all)) {
    EXPECT_THAT(error, HasSubstr("71: rank 1, 3 did not come within 2 s; see whether all 4 ranks"));
  }
}

TEST(Rendezvous, RankZeroIsAtItsPlace) {
  const int port = free_port();
  meet([&](int rank) {
    SocketOptions options = options_of(rank, 2);
    options.meet_port = port;
    return make_socket_communicator(options);
  });
}

TEST(Rendezvous, ALaunchersStoreTellsWhereRankZeroIs) {
  const StoreServer store;
  meet([&](int rank) {
    SocketOptions options = options_of(rank, 2);
    options.meet_port = store.port();
    options.meeting = Meeting::in_store;
    return make_socket_communicator(options);
  });
}

TEST(Rendezvous, NamesWhereNobodyIs) {
  SocketOptions options = options_of(1, 2, 500ms);
  options.meet_port = free_port();
  EXPECT_THAT(error_of([&] { make_socket_communicator(options); }),
              HasSubstr("71: rank 1 cannot meet rank 0 at 127.0.0.1 port " +
                        std::to_string(options.meet_port) + ": Connection refused"));
  options.meeting = Meeting::in_store;
  EXPECT_THAT(error_of([&] { make_socket_communicator(options); }),
              HasSubstr("71: the store at 127.0.0.1:" + std::to_string(options.meet_port) +
                        " does not answer (Connection refused)"));
}

TEST(Rendezvous, NamesThePortThatIsTaken) {
  const auto taken = net::listen_on("127.0.0.1", 0);
  SocketOptions options = options_of(0, 2);
  options.meet_port = net::local_port(taken);
  EXPECT_THAT(error_of([&] { make_socket_communicator(options); }),
              HasSubstr("rank 0 cannot listen at port " + std::to_string(options.meet_port) +
                        " of this machine: Address already in use; choose another port"));
}

TEST(Rendezvous, NamesAnAddressThatIsNone) {
  Notebook notebook;
  SocketOptions options = options_of(0, 2);
  options.address = "10.0.0.1.2.3";
  EXPECT_THAT(error_of([&] { make_socket_communicator(options, notebook); }),
              HasSubstr("'10.0.0.1.2.3' is no address"));
}

TEST(Rendezvous, OneRankNeedsNobody) {
  SocketOptions options;
  options.meet_host = "10.0.0.1.2.3";
  const auto communicator = make_socket_communicator(options);
  at::Tensor tensor = at::ones({3});
  communicator->all_reduce(tensor, ReduceOp::sum)->wait();
  EXPECT_TRUE(tensor.equal(at::ones({3})));
}

TEST(Rendezvous, NamesOfMachinesWork) {
  Notebook notebook;
  meet([&](int rank) {
    SocketOptions options = options_of(rank, 2);
    options.address = "localhost";
    return make_socket_communicator(options, notebook);
  });
}

TEST(Rendezvous, IPv6Works) {
  if (!net::listen_on("::1", 0).open()) GTEST_SKIP() << "this machine has no ::1";
  const int port = free_port("::1");
  meet([&](int rank) {
    SocketOptions options = options_of(rank, 2);
    options.meet_host = "::1";
    options.meet_port = port;
    return make_socket_communicator(options);
  });
  const StoreServer store;
  Notebook notebook;
  meet([&](int rank) {
    SocketOptions options = options_of(rank, 2);
    options.address = "::1";
    return make_socket_communicator(options, notebook);
  });
  EXPECT_EQ(notebook.look_up()->address, "::1");
}

// --- Where one listens --------------------------------------------------------------------------

TEST(ListenPlace, IsTheAddressThatOthersUseWhereItIsOnesOwn) {
  EXPECT_EQ(net::listen_place("127.0.0.1").address, "127.0.0.1");
  EXPECT_TRUE(net::is_loopback(net::listen_place("localhost").address));
  for (const std::string& own : net::own_addresses()) {
    EXPECT_EQ(net::listen_place(own).address, own);
  }
  // Of documentation (RFC 5737): nobody's.
  EXPECT_EQ(net::listen_place("192.0.2.1").address, "");
}

TEST(ListenPlace, EverywhereIsForBothFamilies) {
  const auto listener = net::listen_everywhere(0);
  ASSERT_TRUE(listener.open());
  net::connect_to("127.0.0.1", net::local_port(listener), Clock::now() + 10s);
  if (!net::listen_on("::1", 0).open()) GTEST_SKIP() << "this machine has no ::1";
  net::connect_to("::1", net::local_port(listener), Clock::now() + 10s);
}

TEST(Rendezvous, NobodyListensOnceAllHaveMet) {
  const int port = free_port();
  const auto answers = [&] {
    try {
      net::connect_to("127.0.0.1", port, Clock::now() + 10s);
      return true;
    } catch (const PeerLost&) {
      return false;
    }
  };
  meet([&](int rank) {
    SocketOptions options = options_of(rank, 2);
    options.meet_port = port;
    auto ranks = make_socket_communicator(options);
    ranks->barrier()->wait();
    EXPECT_FALSE(answers());
    ranks->barrier()->wait();
    return ranks;
  });
}

// A rank that reaches rank 0 at several addresses at once is let in by one of them.
TEST(Rendezvous, AHostWithManyAddressesIsOneHost) {
  const net::JobIdentity identity{net::key_from_secret("sixteen letters"), "job", 2};
  for (int times = 0; times < 20; ++times) {
    net::Door door(net::listen_everywhere(0), identity, 0);
    std::vector<net::Address> addresses;
    for (const char* host : {"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}) {
      addresses.push_back(net::resolve(host, door.port()).front());
    }
    std::vector<net::Descriptor> in;
    std::atomic<bool> done = false;
    std::thread host([&] {
      while (!done) {
        door.admit([&](const net::Introduction&) { return in.empty(); },
                   [&](const net::Introduction&, net::Descriptor socket) {
                     in.push_back(std::move(socket));
                   });
        std::this_thread::sleep_for(5ms);
      }
    });
    const auto guest =
        net::call(addresses, identity, {net::Role::data, 1, 0}, Clock::now() + 60s, [] {});
    done = true;
    host.join();
    ASSERT_EQ(in.size(), 1u);
    net::send_all(in.front(), "x", 1, Clock::now() + 60s);
    char heard = 0;
    net::receive_all(guest, &heard, 1, Clock::now() + 60s);
    EXPECT_EQ(heard, 'x');
  }
}

// One address that swallows what comes does not keep a rank from another one, however late.
TEST(Rendezvous, AnAddressThatSaysNothingIsNotWaitedFor) {
  const net::JobIdentity identity{net::key_from_secret("sixteen letters"), "job", 2};
  const auto silent = net::listen_on("127.0.0.1", 0);
  const int port = free_port("127.0.0.2");
  std::vector<net::Address> addresses{net::resolve("127.0.0.1", net::local_port(silent)).front(),
                                      net::resolve("127.0.0.2", port).front()};
  std::atomic<bool> done = false;
  std::thread host([&] {
    std::this_thread::sleep_for(700ms);
    net::Door door(net::listen_on("127.0.0.2", port), identity, 0);
    while (!done) {
      door.admit([](const auto&) { return true; }, [](const auto&, net::Descriptor) {});
      std::this_thread::sleep_for(1ms);
    }
  });
  net::call(addresses, identity, {net::Role::meeting, 1, 0}, Clock::now() + 60s, [] {});
  done = true;
  host.join();
}

// More ranks at once than a door has places for strangers.
TEST(Rendezvous, ManyComeAtOnce) {
  constexpr int kSize = 200;
  const net::JobIdentity identity{net::key_from_secret("sixteen letters"), "job", kSize};
  net::Door door(net::listen_on("127.0.0.1", 0), identity, 0);
  const auto addresses = net::resolve("127.0.0.1", door.port());
  std::vector<std::thread> callers;
  for (int part = 0; part < 4; ++part) {
    callers.emplace_back([&, part] {
      for (int rank = 1 + part; rank < kSize; rank += 4) {
        net::call(addresses, identity, {net::Role::lifeline, rank, 0}, Clock::now() + 60s, [] {});
      }
    });
  }
  std::set<int> came;
  const Deadline deadline = Clock::now() + 60s;
  while (came.size() + 1 < kSize && Clock::now() < deadline) {
    door.admit([&](const auto& who) { return !came.contains(who.guest); },
               [&](const auto& who, net::Descriptor) { came.insert(who.guest); });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(came.size() + 1, kSize);
}

// --- Strangers ----------------------------------------------------------------------------------

// A job of two at `port` while `disturb` is done to its rank 0, which waits for rank 1.
void meet_in_spite_of(const std::function<void(int port)>& disturb) {
  const int port = free_port();
  std::thread first([&] {
    EXPECT_EQ(errors_of({[&] {
                SocketOptions options = options_of(0, 2);
                options.meet_port = port;
                return options;
              }()})[0],
              "");
  });
  disturb(port);
  SocketOptions options = options_of(1, 2);
  options.meet_port = port;
  EXPECT_EQ(errors_of({options})[0], "");
  first.join();
}

net::Descriptor reach(int port) {
  const Deadline deadline = Clock::now() + 60s;
  for (;;) {
    try {
      return net::connect_to("127.0.0.1", port, deadline);
    } catch (const PeerLost&) {
      if (Clock::now() > deadline) throw;
      std::this_thread::sleep_for(5ms);
    }
  }
}

TEST(Strangers, AreTurnedAwayAlone) {
  std::vector<net::Descriptor> kept;
  meet_in_spite_of([&](int port) {
    const Deadline deadline = Clock::now() + 60s;
    kept.push_back(reach(port));  // says nothing
    kept.push_back(reach(port));
    net::send_all(kept.back(), "x", 1, deadline);
    kept.push_back(reach(port));
    const std::string request =
        "GET / HTTP/1.1\r\nHost: thinwire\r\nAccept: */*\r\n" + std::string(100, 'x') + "\r\n\r\n";
    net::send_all(kept.back(), request.data(), request.size(), deadline);
    char answer = 0;
    EXPECT_THROW(net::receive_all(kept.back(), &answer, 1, deadline), PeerLost);
    for (int i = 0; i < 200; ++i) kept.push_back(reach(port));
  });
}

TEST(Strangers, OfAnotherJobAreTold) {
  const auto with = [](auto change) {
    SocketOptions options = options_of(1, 2, 2s);
    change(options);
    return options;
  };
  const std::vector<std::pair<SocketOptions, std::string>> strangers{
      {with([](auto& o) { o.identity.key = net::key_from_secret("another secret"); }),
       "what answers there has another secret; give all ranks the same"},
      {with([](auto& o) { o.identity.key = {}; }), "another secret"},
      {with([](auto& o) { o.identity.job = "other"; }),
       "another job meets there than this one, 'other'; give each job a MASTER_PORT of its own, "
       "and its ranks one --job-id"},
      {with([](auto& o) { o.size = 3; }), "another number of ranks than 3"},
  };
  meet_in_spite_of([&](int port) {
    for (auto [options, sentence] : strangers) {
      options.meet_port = port;
      EXPECT_THAT(errors_of({options})[0], HasSubstr("71: rank 1 cannot meet rank 0")) << sentence;
      EXPECT_THAT(errors_of({options})[0], HasSubstr(sentence));
    }
  });
}

// The second of two that say that they are rank 1 is turned away; the first goes on.
TEST(Strangers, WhoComesTwiceIsTurnedAway) {
  const int port = free_port();
  std::vector<SocketOptions> all{options_of(0, 2), options_of(1, 2, 2s), options_of(1, 2, 2s)};
  for (auto& options : all) options.meet_port = port;
  auto errors = errors_of(all);
  EXPECT_EQ(errors[0], "");
  std::sort(errors.begin() + 1, errors.end());
  EXPECT_EQ(errors[1], "");
  EXPECT_THAT(errors[2], HasSubstr("rank 1 cannot meet rank 0"));
}

// One that dies while it waits may be started again.
TEST(Strangers, WhoLeftMayComeAgain) {
  meet_in_spite_of([&](int port) {
    const SocketOptions options = options_of(1, 2);
    net::JobIdentity identity = options.identity;
    identity.size = 2;
    for (int times = 0; times < 3; ++times) {
      const auto left = net::call(net::resolve("127.0.0.1", port), identity,
                                  {net::Role::meeting, 1, 0}, Clock::now() + 60s, [] {});
      if (times == 1) net::send_all(left, "half of a contact", 5, Clock::now() + 60s);
      std::this_thread::sleep_for(150ms);
    }
  });
}

// What is no rank of ours answers at the place, or nothing does.
TEST(Strangers, AnImposterInRankZerosPlaceIsNotBelieved) {
  const auto listener = net::listen_on("127.0.0.1", 0);
  SocketOptions options = options_of(1, 2, 1s);
  options.meet_port = net::local_port(listener);
  EXPECT_THAT(errors_of({options})[0], HasSubstr("no answer in time"));

  const net::JobIdentity other{net::key_from_secret("another secret"), "job", 2};
  net::Door door(net::listen_on("127.0.0.1", 0), other, 0);
  options.meet_port = door.port();
  std::atomic<bool> done = false;
  std::thread imposter([&] {
    while (!done) {
      door.admit([](const auto&) { return true; }, [](const auto&, net::Descriptor) {});
      std::this_thread::sleep_for(1ms);
    }
  });
  EXPECT_THAT(errors_of({options})[0], HasSubstr("another secret"));
  done = true;
  imposter.join();
}

// A store that takes a connection and never answers, one that stores nonsense, one without an end.
TEST(Strangers, AStoreThatDoesNotAnswerIsNotWaitedFor) {
  const auto listener = net::listen_on("127.0.0.1", 0);
  for (const int rank : {0, 1}) {
    SocketOptions options = options_of(rank, 2, 1s);
    options.meet_port = net::local_port(listener);
    options.meeting = Meeting::in_store;
    const auto began = Clock::now();
    EXPECT_THAT(errors_of({options})[0], HasSubstr("does not answer (no answer in time)"));
    EXPECT_LT(Clock::now() - began, 20s);
  }
}

// What a stranger stores is no place, and is not fetched whatever its size.
TEST(Strangers, WhatAStoreHoldsIsNotBelieved) {
  for (const std::string& value :
       {std::string("x"), std::string("70000"), std::string("-1"), std::string(1 << 26, '7')}) {
    StoreServer store;
    for (int i = 0; i < 7; ++i) store.set("thinwire/job/" + std::to_string(i), value);
    SocketOptions options = options_of(1, 2, 1s);
    options.meet_port = store.port();
    options.meeting = Meeting::in_store;
    const std::string error = errors_of({options})[0];
    EXPECT_THAT(error, HasSubstr("71: "));
    EXPECT_THAT(error, ::testing::AnyOf(HasSubstr("does not answer"),
                                        HasSubstr("is no address that it left there")));
    EXPECT_LT(error.size(), 500u);
  }
}

// --- Asked to stop ------------------------------------------------------------------------------

TEST(Rendezvous, EndsOnRequestWhileARankIsMissing) {
  const int port = free_port();
  std::vector<SocketOptions> all{options_of(0, 3), options_of(1, 3)};
  for (auto& options : all) options.meet_port = port;
  all[0].stop_requested = [] { return true; };
  const auto began = Clock::now();
  const auto errors = errors_of(all);
  EXPECT_THAT(errors[0], HasSubstr("75: rank 0 was asked to stop while rank 2 was missing; there "
                                   "is no checkpoint yet"));
  EXPECT_EQ(errors[1], errors[0]);
  EXPECT_LT(Clock::now() - began, 30s);

  // Another rank than rank 0 that is asked tells it, and it the others.
  all[0].stop_requested = nullptr;
  all[1].stop_requested = [] { return true; };
  for (auto& options : all) options.meet_port = free_port();
  all[1].meet_port = all[0].meet_port;
  for (const std::string& error : errors_of(all)) {
    EXPECT_THAT(error, HasSubstr("75: rank 1 was asked to stop while rank 2 was missing"));
  }

  SocketOptions alone = options_of(1, 3);
  alone.meet_port = free_port();
  alone.stop_requested = [] { return true; };
  EXPECT_THAT(errors_of({alone})[0], HasSubstr("75: stopped on request before the ranks had met"));
}

// --- Messages -----------------------------------------------------------------------------------

TEST(Messages, ContactsAreReadBackAndNothingElseIs) {
  for (const Contact& contact :
       {Contact{"127.0.0.1", 1}, Contact{"fd00::1", 65535}, Contact{"host-1.example.org", 29500}}) {
    const auto back = sockets::parse_contact(sockets::write_contact(contact));
    ASSERT_TRUE(back);
    EXPECT_EQ(back->address, contact.address);
    EXPECT_EQ(back->port, contact.port);
  }
  const std::string good = sockets::write_contact({"127.0.0.1", 1});
  const auto changed = [&](std::size_t at, char to) {
    std::string text = good;
    text[at] = to;
    return text;
  };
  EXPECT_FALSE(sockets::parse_contact(""));
  EXPECT_FALSE(sockets::parse_contact(good + "x"));
  EXPECT_FALSE(sockets::parse_contact(changed(0, '\0')));       // port 0
  EXPECT_FALSE(sockets::parse_contact(changed(2, '\0')));       // no address
  EXPECT_FALSE(sockets::parse_contact(changed(3, '\x1b')));     // no character of an address
  EXPECT_FALSE(sockets::parse_contact(changed(127, 'x')));      // something behind its end
  EXPECT_FALSE(sockets::parse_contact(std::string(128, '1')));  // without an end
}

// Each field of the first word that differs is named.
TEST(Messages, AHandshakeNamesWhatDiffers) {
  const net::JobIdentity ours{net::key_from_secret("sixteen letters"), "job", 3};
  const std::string hello = net::GuestSide(ours, {net::Role::data, 2, 1}).hello();
  struct Case {
    std::size_t at;  // of a byte that another one takes the place of
    char to;
    net::Refusal refusal;
  };
  for (const auto& [at, to, refusal] : {
           Case{0, 'X', net::Refusal::no_rank},
           Case{8, static_cast<char>(hello[8] + 1), net::Refusal::version},
           Case{16, static_cast<char>(hello[16] + 1), net::Refusal::job},
           Case{24, 4, net::Refusal::size},
           Case{28, 4, net::Refusal::no_rank},  // no role
           Case{32, 3, net::Refusal::no_rank},  // no rank of three
           Case{32, 1, net::Refusal::no_rank},  // the host itself
           Case{36, 0, net::Refusal::host},
       }) {
    std::string changed = hello;
    changed[at] = to;
    net::HostSide host(ours, 1);
    host.hear(changed, [](const auto&) { return true; });
    EXPECT_EQ(host.refusal(), refusal) << "byte " << at;
    EXPECT_EQ(host.wants(), 0u);
  }
}

TEST(Messages, AHandshakeNeedsTheKeyOnBothSides) {
  const net::JobIdentity ours{net::key_from_secret("sixteen letters"), "job", 3};
  const net::JobIdentity theirs{net::key_from_secret("another secret"), "job", 3};
  const net::Introduction who{net::Role::data, 2, 1};
  const auto yes = [](const net::Introduction&) { return true; };
  {
    net::GuestSide guest(ours, who);
    net::HostSide host(ours, 1);
    const std::string proof = guest.hear(host.hear(guest.hello(), yes));
    guest.hear(host.hear(proof, yes));
    EXPECT_TRUE(guest.let_in() && host.let_in());
    EXPECT_EQ(host.guest().guest, 2);
    EXPECT_EQ(guest.wants() + host.wants(), 0u);
    // What was heard is of no use in another handshake.
    net::HostSide again(ours, 1);
    again.hear(guest.hello().substr(0, again.wants()), yes);
    again.hear(proof, yes);
    EXPECT_EQ(again.refusal(), net::Refusal::secret);
  }
  {
    net::GuestSide guest(theirs, who);
    net::HostSide host(ours, 1);
    guest.hear(host.hear(guest.hear(host.hear(guest.hello(), yes)), yes));
    EXPECT_FALSE(guest.let_in() || host.let_in());
    EXPECT_EQ(host.refusal(), net::Refusal::secret);
  }
  {
    // A host that lets in whoever comes does not know the guest's secret.
    net::GuestSide guest(ours, who);
    net::HostSide host(theirs, 1);
    guest.hear(host.hear(guest.hello(), yes));
    guest.hear(std::string(guest.wants(), '\0'));
    EXPECT_FALSE(guest.let_in());
    EXPECT_EQ(guest.refusal(), net::Refusal::no_rank);
  }
}

}  // namespace
}  // namespace thinwire
