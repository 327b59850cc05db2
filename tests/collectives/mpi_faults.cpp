// What goes wrong in a job over MPI, again and again: ranks that call different operations, leave,
// drop what they posted, throw, abort and free the memory that they had given. No rank may crash or
// wait for its timeout, no byte may come where it does not belong any more, and every end of a
// group names its cause.
//
//   mpirun -np N mpi_faults attacks SEED ROUNDS    # ends well
//   mpirun -np N mpi_faults end SEED               # main catches one, and returns its exit code
#include <ATen/ATen.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/mpi/mpi_communicator.h"

namespace {

using namespace std::chrono_literals;
using thinwire::Clock;
using thinwire::Communicator;
using thinwire::ReduceOp;
using thinwire::Work;

[[noreturn]] void fail(const char* attack, const std::string& what) {
  std::fprintf(stderr, "mpi_faults: %s: %s\n", attack, what.c_str());
  thinwire::MpiEnvironment::abort_job(1);
}

// A rank's own failure, which has nothing to do with communication.
struct Own : std::exception {
  const char* what() const noexcept override { return "a failure of its own"; }
};

// Gives tensors over memory that is freed, or handed to somebody else, as soon as this goes.
class Lender {
 public:
  explicit Lender(std::mt19937& random) : random_(random) {}
  // What was freed is soon used by others: nothing may come there.
  ~Lender() {
    std::vector<std::vector<unsigned char>> reused;
    for (auto& block : blocks_) {
      const std::size_t bytes = block.size() * sizeof(float);
      block = {};
      reused.emplace_back(bytes, 0x5a);
    }
    const auto end = Clock::now() + 2ms;
    for (int found = 0; Clock::now() < end;) {  // lets MPI go on
      MPI_Iprobe(MPI_ANY_SOURCE, 0, MPI_COMM_WORLD, &found, MPI_STATUS_IGNORE);
    }
    for (const auto& bytes : reused) {
      for (const unsigned char byte : bytes) {
        if (byte != 0x5a) fail("memory", "freed memory was written to");
      }
    }
    // A tensor of its own memory may be enlarged, where that is still allowed.
    for (at::Tensor& tensor : owned_) {
      try {
        tensor.resize_({tensor.numel() * 2 + 1000});
      } catch (const c10::Error&) {
      }
    }
  }

  at::Tensor tensor(std::int64_t count) {
    switch (random_() % 3) {
      case 0:
        owned_.push_back(at::zeros({count}));
        return owned_.back();
      case 1: {  // given another storage at once
        at::Tensor tensor = at::zeros({count});
        moved_.push_back(tensor);
        return tensor;
      }
      default:
        blocks_.emplace_back(static_cast<std::size_t>(count));
        return at::from_blob(blocks_.back().data(), {count});
    }
  }
  void move_storages() {
    for (at::Tensor& tensor : moved_) tensor.set_(at::zeros({10}).storage(), 0, {10}, {1});
  }

 private:
  std::mt19937& random_;
  std::vector<std::vector<float>> blocks_;
  std::vector<at::Tensor> owned_;
  std::vector<at::Tensor> moved_;
};

struct Round {
  Communicator& ranks;
  Lender& lender;
  std::mt19937& alike;  // draws the same on all ranks
  std::mt19937& own;

  int rank() const { return ranks.rank(); }
  int size() const { return ranks.size(); }
  std::int64_t count() const {
    const std::int64_t largest[] = {10, 3000, 20000, 700000};
    return 1 + static_cast<std::int64_t>(alike()) % largest[alike() % 4];
  }
  std::unique_ptr<Work> all_reduce(std::int64_t count) const {
    return ranks.all_reduce(lender.tensor(count), ReduceOp::sum);
  }
  std::unique_ptr<Work> all_gather(std::int64_t count) const {
    return ranks.all_gather(lender.tensor(count * size()), lender.tensor(count), {});
  }
  std::unique_ptr<Work> all_to_all(std::int64_t count) const {
    return ranks.all_to_all(lender.tensor(count * size()), lender.tensor(count * size()), {}, {});
  }
  std::unique_ptr<Work> any(std::int64_t count) const {
    switch (alike() % 3) {
      case 0:
        return all_reduce(count);
      case 1:
        return all_gather(count);
      default:
        return all_to_all(count);
    }
  }
  // Several, waited for in turn.
  void some() const {
    std::vector<std::unique_ptr<Work>> works;
    const auto many = 1 + alike() % 5;
    for (std::size_t i = 0; i < many; ++i) works.push_back(any(count()));
    lender.move_storages();
    for (const auto& work : works) work->wait();
  }
};

struct Attack {
  const char* name;
  const char* sentence;  // a part of what every rank says that does not end well
  std::function<void(const Round&)> run;
};

constexpr const char* kDisagree = "every rank must call the same operations in the same order";

const Attack kAttacks[] = {
    {"other sizes", kDisagree,
     [](const Round& round) {
       const std::int64_t count = round.count();
       round.all_reduce(round.rank() == 0 ? count : count + 1)->wait();
       round.ranks.barrier()->wait();
     }},
    {"other compressors", kDisagree,
     [](const Round& round) {
       const std::int64_t count = round.count();
       std::vector<std::unique_ptr<Work>> works;
       for (int bucket = 0; bucket < 3; ++bucket) {
         if (round.rank() == 0) {
           works.push_back(round.all_to_all(count));
           works.back()->wait();
           works.push_back(round.all_gather(count));
         } else {
           works.push_back(round.all_reduce(count));
         }
       }
       for (const auto& work : works) work->wait();
       round.ranks.barrier()->wait();
     }},
    {"two users", "",  // which may go well, or mix up two alike
     [](const Round& round) {
       std::vector<std::exception_ptr> errors(2);
       std::vector<std::thread> threads;
       for (std::size_t user = 0; user < 2; ++user) {
         threads.emplace_back([&, user] {
           try {
             for (int i = 0; i < 20; ++i) {
               std::vector<float> memory(static_cast<std::size_t>(1 + 400 * user + i));
               round.ranks
                   .all_reduce(
                       at::from_blob(memory.data(), {static_cast<std::int64_t>(memory.size())}),
                       ReduceOp::sum)
                   ->wait();
             }
           } catch (...) {
             errors[user] = std::current_exception();
           }
         });
       }
       for (auto& thread : threads) thread.join();
       for (const auto& error : errors) {
         if (error) std::rethrow_exception(error);
       }
     }},
    {"a throw between call and wait", "dropped",
     [](const Round& round) {
       const std::int64_t count = round.count();
       const auto first = round.any(count);
       const auto second = round.any(count);
       round.lender.move_storages();
       if (round.rank() == round.size() - 1) throw Own();
       first->wait();
       second->wait();
       round.ranks.barrier()->wait();
     }},
    {"a dropped operation", "rank 0 dropped",
     [](const Round& round) {
       auto first = round.any(round.count());
       auto second = round.any(round.count());
       if (round.rank() == 0) {
         first.reset();
       } else {
         first->wait();
       }
       second->wait();
       round.ranks.barrier()->wait();
     }},
    {"an abort beside a wait", "rank 0 gave up",
     [](const Round& round) {
       std::thread other;
       const auto pause = std::chrono::microseconds(round.own() % 3000);
       if (round.rank() == 0) {
         other = std::thread([&round, pause] {
           std::this_thread::sleep_for(pause);
           round.ranks.abort("rank 0 gave up");
         });
       }
       try {
         for (;;) round.some();
       } catch (...) {
         if (other.joinable()) other.join();
         throw;
       }
     }},
    {"a rank that is late", "timed out",
     [](const Round& round) {
       if (round.rank() == 0) {
         MPI_Barrier(MPI_COMM_WORLD);
         round.ranks.barrier()->wait();
         return;
       }
       const auto work = round.any(round.count());
       round.lender.move_storages();
       try {
         work->wait(Clock::now() + 5ms);
       } catch (const thinwire::PeerLost&) {
         MPI_Barrier(MPI_COMM_WORLD);
         throw;
       }
     }},
};

// Everybody but the first leaves after some operations.
void leave_early(std::unique_ptr<Communicator> ranks, Lender& lender, std::mt19937& alike,
                 std::mt19937& own) {
  const Round round{*ranks, lender, alike, own};
  round.some();
  if (ranks->rank() > 0) return;
  try {
    round.some();
    ranks->barrier()->wait();
  } catch (const thinwire::PeerLost& error) {
    if (std::string(error.what()).find("left the group before") != std::string::npos) return;
    fail("leaving early", error.what());
  }
  fail("leaving early", "nobody was missed");
}

void attack(const Attack& attack, std::unique_ptr<Communicator> ranks, std::mt19937& alike,
            std::mt19937& own) {
  Lender lender(own);
  try {
    attack.run({*ranks, lender, alike, own});
    if (*attack.sentence != '\0') fail(attack.name, "it went well");
  } catch (const Own&) {
  } catch (const thinwire::Error& error) {
    if (std::string(error.what()).find(attack.sentence) == std::string::npos) {
      fail(attack.name, error.what());
    }
    const bool disagree = dynamic_cast<const thinwire::RanksDisagree*>(&error) != nullptr;
    if (attack.sentence == kDisagree && !disagree) fail(attack.name, "not RanksDisagree");
  } catch (const std::exception& error) {
    fail(attack.name, error.what());
  }
}

void attacks(unsigned seed, int rounds) {
  std::mt19937 alike(seed);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::mt19937 own(100 * seed + static_cast<unsigned>(rank));
  for (int round = 0; round < rounds; ++round) {
    MPI_Barrier(MPI_COMM_WORLD);
    const auto start = Clock::now();
    auto ranks = thinwire::make_mpi_communicator(MPI_COMM_WORLD);
    const auto which = alike() % (std::size(kAttacks) + 1);
    const char* name = "leaving early";
    if (which == std::size(kAttacks)) {
      Lender lender(own);
      leave_early(std::move(ranks), lender, alike, own);
    } else {
      name = kAttacks[which].name;
      attack(kAttacks[which], std::move(ranks), alike, own);
    }
    if (Clock::now() - start > 20s) fail(name, "the end took long");
    alike.seed(seed + 1000 * static_cast<unsigned>(round + 1));  // ranks have drawn differently
  }
}

// Pieces of other sizes: messages of the same operation, so their tags are alike.
void other_pieces() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (const std::int64_t bytes : {64, 128}) {
    thinwire::MpiOptions options;
    options.max_message_bytes = rank == 0 ? bytes : 192 - bytes;
    const auto ranks = thinwire::make_mpi_communicator(MPI_COMM_WORLD, options);
    std::vector<float> memory(100 * static_cast<std::size_t>(ranks->size()));
    try {
      ranks
          ->all_gather(at::from_blob(memory.data(), {static_cast<std::int64_t>(memory.size())}),
                       at::zeros({100}), {})
          ->wait();
      fail("other pieces", "it went well");
    } catch (const thinwire::RanksDisagree& error) {
      if (std::string(error.what()).find("in one message") == std::string::npos) {
        fail("other pieces", error.what());
      }
    }
  }
}

int end(unsigned seed) {
  thinwire::MpiEnvironment mpi;
  std::mt19937 alike(seed);
  std::mt19937 own(seed);
  try {
    auto ranks = thinwire::make_mpi_communicator(MPI_COMM_WORLD);
    Lender lender(own);
    kAttacks[seed % 2].run({*ranks, lender, alike, own});
    return 0;
  } catch (const thinwire::Error& error) {
    std::printf("%s\n", error.what());
    std::fflush(stdout);
    return static_cast<int>(error.code());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const auto seed = static_cast<unsigned>(std::atoi(argv[2]));
  if (std::strcmp(argv[1], "end") == 0) return end(seed);
  thinwire::MpiEnvironment mpi;
  other_pieces();
  attacks(seed, argc > 3 ? std::atoi(argv[3]) : 100);
  return 0;
}
