// Frames and notices of any bytes from a peer.
//
// Input: what this rank calls; whether the bytes come before that, and on which connection (1 byte
// each); then the bytes.
#include <ATen/ops/full.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/net/socket.h"
#include "collectives/sockets/mesh.h"

namespace thinwire {
namespace {

using namespace std::chrono_literals;
using net::Descriptor;

// The end of a connection that the peer holds; the other one goes to `ours`.
Descriptor connect_peer(Descriptor& ours) {
  int ends[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0,
        "a pair of sockets");
  ours = Descriptor(ends[0]);
  return Descriptor(ends[1]);
}

constexpr int kSize = 2;

Operation operation(std::uint8_t which) {
  switch (which % 5) {
    case 0:
      return make_all_reduce(at::full({37}, 1.0f), ReduceOp::sum, kSize);
    case 1:
      return make_broadcast(at::full({37}, 1.0f), 1, kSize);
    case 2:
      return make_all_gather(at::full({37}, 1.0f), at::full({18}, 1.0f), {18, 19}, 0, kSize);
    case 3:
      return make_all_to_all(at::full({9}, 1.0f), at::full({9}, 1.0f), {4, 5}, {4, 5}, kSize);
    default:
      return {};
  }
}

// What rank 1 sends when it calls a barrier as its first operation.
std::string call_of_barrier() {
  BlockPool pool(64);
  const sockets::PendingOperation operation({}, {}, 1, kSize, 64, pool);
  const sockets::FrameHeader header = operation.header(0, sockets::FrameKind::call);
  return std::string(reinterpret_cast<const char*>(&header), sizeof header);
}

void send_to(const Descriptor& socket, const void* from, std::size_t bytes) {
  check(::send(socket.get(), from, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes),
        "an input fits into a socket");
}

void try_input(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return;
  const std::uint8_t which = data[0];
  const bool early = data[1] % 4 < 2;  // the bytes come before this rank has called
  SocketOptions options;
  options.size = kSize;
  options.timeout = 1000ms;
  options.chunk_bytes = 64;
  std::vector<sockets::Connections> connections(kSize);
  Descriptor peer_data = connect_peer(connections[1].data);
  Descriptor peer_notices = connect_peer(connections[1].notices);
  sockets::Mesh mesh(options, std::move(connections));
  const Descriptor& to = data[1] % 2 == 0 ? peer_data : peer_notices;
  try {
    const auto first = mesh.post(mesh.world(), early ? Operation{} : operation(which));
    if (early) {
      const std::string call = call_of_barrier();
      send_to(peer_data, call.data(), call.size());
    }
    send_to(to, data + 2, size - 2);
    if (early) {
      mesh.wait(mesh.world(), *first, Clock::now() + 10s);
      const auto second = mesh.post(mesh.world(), operation(which));
      peer_data.reset();
      peer_notices.reset();
      return mesh.wait(mesh.world(), *second, Clock::now() + 10s);
    }
    // The peer ends, so that this ends too.
    peer_data.reset();
    peer_notices.reset();
    mesh.wait(mesh.world(), *first, Clock::now() + 10s);
  } catch (const Error& error) {
    const std::string text = error.what();
    check(printable(text, 8000) == text && text.size() < 6000, "what is said of it can be shown");
  }
  // The mesh does not wait for a peer that has left.
  peer_data.reset();
  peer_notices.reset();
}

}  // namespace
}  // namespace thinwire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thinwire::try_input(data, size);
  return 0;
}
