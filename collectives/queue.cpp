#include "collectives/queue.h"

#include <cstring>
#include <utility>

#include "collectives/base/team.h"

namespace thinwire {
namespace {

class HostQueue final : public Queue {
 public:
  explicit HostQueue(std::shared_ptr<Team> team) : team_(std::move(team)) {}
  void attach_thread() override {}
  bool on_host() const override { return true; }
  Executor executor() const override { return team_ ? Executor(*team_) : Executor(); }
  std::shared_ptr<const Mark> mark() override { return std::make_shared<Mark>(); }
  void wait_for(const Mark&, const std::source_location&) override {}
  void synchronize(Deadline, const std::source_location&) override {}
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void fill(void* to, int byte, std::size_t bytes) override {
    if (bytes > 0) std::memset(to, byte, bytes);
  }
  std::shared_ptr<void> host_memory(std::size_t bytes) override {
    return std::make_shared<std::byte[]>(bytes);
  }

 private:
  std::shared_ptr<Team> team_;
};

}  // namespace

std::unique_ptr<Queue> make_host_queue(std::shared_ptr<Team> team) {
  return std::make_unique<HostQueue>(std::move(team));
}

}  // namespace thinwire
