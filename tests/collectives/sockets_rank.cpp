// One rank of a sockets job as a process, for tests that kill and stop it: sums for ever, and says
// why it ended. sockets_rank RANK SIZE FOLDER TIMEOUT_MS; the ranks meet through files in the
// folder, and the timeout is that of one sum once they have met.
#include <ATen/ops/ones.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "collectives/base/error.h"
#include "collectives/sockets/rendezvous.h"
#include "collectives/sockets/socket_communicator.h"

namespace {

class Folder final : public thinwire::sockets::Directory {
 public:
  explicit Folder(std::filesystem::path path) : path_(std::move(path)) {}

  void publish(const thinwire::sockets::Contact& contact) override {
    const std::filesystem::path unfinished = file().string() + ".new";
    std::ofstream(unfinished) << contact.address << " " << contact.port;
    std::filesystem::rename(unfinished, file());
  }
  std::optional<thinwire::sockets::Contact> look_up() override {
    std::ifstream stream(file());
    thinwire::sockets::Contact contact;
    if (!(stream >> contact.address >> contact.port)) return std::nullopt;
    return contact;
  }

 private:
  std::filesystem::path file() const { return path_ / "rank-0"; }
  std::filesystem::path path_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  thinwire::SocketOptions options;
  options.rank = std::atoi(argv[1]);
  options.size = std::atoi(argv[2]);
  Folder folder(argv[3]);
  const std::chrono::milliseconds timeout(std::atoi(argv[4]));
  try {
    const auto communicator = thinwire::make_socket_communicator(options, folder);
    for (int step = 0;; ++step) {
      at::Tensor tensor = at::ones({300000});
      communicator->all_reduce(tensor, thinwire::ReduceOp::sum)
          ->wait(thinwire::Clock::now() + timeout);
      if (step == 2) std::puts("ready");
      std::fflush(stdout);
    }
  } catch (const thinwire::Error& error) {
    std::puts(error.what());
    std::fflush(stdout);
    return static_cast<int>(error.code());
  }
}
