#include "collectives/sockets/socket_communicator.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>

#include "collectives/base/error.h"
#include "collectives/operation.h"
#include "collectives/sockets/mesh.h"
#include "collectives/sockets/store_directory.h"

namespace thinwire {
namespace {

using sockets::Group;
using sockets::GroupId;
using sockets::Mesh;

class SocketWork final : public Work {
 public:
  SocketWork(std::shared_ptr<Mesh> mesh, Group& group,
             std::shared_ptr<sockets::PendingOperation> operation, std::int64_t bytes)
      : Work(mesh->options().timeout),
        mesh_(std::move(mesh)),
        group_(group),
        operation_(std::move(operation)),
        bytes_(bytes) {}

  ~SocketWork() override {
    if (waited_) return;
    mesh_->abort(group_, {FailureKind::lost,
                          fmt::format("rank {} dropped {} without waiting for it",
                                      mesh_->options().rank, operation_->call().describe())});
  }

  using Work::wait;
  void wait(Deadline deadline) override {
    waited_ = true;
    mesh_->wait(group_, *operation_, deadline);
  }

  std::int64_t bytes_sent() const override { return bytes_; }

 private:
  std::shared_ptr<Mesh> mesh_;
  Group& group_;
  std::shared_ptr<sockets::PendingOperation> operation_;
  std::int64_t bytes_;
  bool waited_ = false;
};

class SocketCommunicator final : public OperationCommunicator {
 public:
  SocketCommunicator(std::shared_ptr<Mesh> mesh, Group& group)
      : OperationCommunicator(group.rank, static_cast<int>(group.members.size()),
                              mesh->options().timeout),
        mesh_(std::move(mesh)),
        group_(group) {}

  ~SocketCommunicator() override { mesh_->leave(group_); }

  std::unique_ptr<Communicator> split(int color, int key) override {
    // Everybody proposes a name for his part; that of its first member counts.
    const GroupId proposed = mesh_->new_id();
    at::Tensor mine = at::empty({4}, at::kLong);
    std::int64_t* words = mine.data_ptr<std::int64_t>();
    words[0] = color;
    words[1] = key;
    words[2] = proposed.leader;
    words[3] = proposed.number;
    at::Tensor all = at::empty({4 * size()}, at::kLong);
    all_gather(all, mine, {})->wait();

    std::vector<std::pair<std::int64_t, int>> order;  // (key, rank)
    const auto words_of = [&](int peer) { return all.data_ptr<std::int64_t>() + 4 * peer; };
    for (int peer = 0; peer < size(); ++peer) {
      if (words_of(peer)[0] == color) order.emplace_back(words_of(peer)[1], peer);
    }
    std::sort(order.begin(), order.end());
    const std::int64_t* first = words_of(order.front().second);
    std::vector<int> members;
    for (const auto& [its_key, peer] : order) {
      members.push_back(group_.members[static_cast<std::size_t>(peer)]);
    }
    const GroupId id{static_cast<std::uint32_t>(first[2]), static_cast<std::uint32_t>(first[3])};
    return std::make_unique<SocketCommunicator>(mesh_,
                                                mesh_->add_group(id, std::move(members), group_));
  }

  void abort(const std::string& reason) override {
    mesh_->abort(group_, {FailureKind::lost, reason});
  }

 private:
  std::unique_ptr<Work> post(Operation call) override {
    const std::int64_t bytes = direct_bytes_sent(call, rank(), size());
    auto operation = mesh_->post(group_, std::move(call));
    return std::make_unique<SocketWork>(mesh_, group_, std::move(operation), bytes);
  }

  std::shared_ptr<Mesh> mesh_;
  Group& group_;
};

void check_options(const SocketOptions& options) {
  check(options.size > 0 && options.rank >= 0 && options.rank < options.size,
        "sockets: rank and size do not fit");
  check(options.chunk_bytes > 0 && options.chunk_bytes <= (std::int64_t{1} << 30),
        "sockets: chunk_bytes must be in 1 ... 2^30");
}

std::unique_ptr<Communicator> join(SocketOptions options, sockets::Directory* directory) {
  check_options(options);
  options.identity.size = options.size;
  if (directory != nullptr) options.meeting = Meeting::in_store;
  std::vector<sockets::Connections> connections;
  if (options.size > 1) {
    connections = sockets::meet(options, directory, Clock::now() + options.timeout);
  }
  auto mesh = std::make_shared<Mesh>(options, std::move(connections));
  Group& world = mesh->world();
  return std::make_unique<SocketCommunicator>(std::move(mesh), world);
}

}  // namespace

std::unique_ptr<Communicator> make_socket_communicator(const SocketOptions& options) {
  if (options.meeting == Meeting::at_rank_zero || options.size == 1) {
    return join(options, nullptr);
  }
  const auto store = sockets::open_store(options, Clock::now() + options.timeout);
  return join(options, store.get());
}

std::unique_ptr<Communicator> make_socket_communicator(const SocketOptions& options,
                                                       sockets::Directory& directory) {
  return join(options, &directory);
}

}  // namespace thinwire
