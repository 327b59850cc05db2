#include "tests/support/store.h"

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "collectives/net/socket.h"

namespace thinwire::testing {

StoreServer::StoreServer() {
  // TCPStore's own listener makes it ask DNS for the name of everybody who connects.
  net::Descriptor listener = net::listen_on("127.0.0.1", 0);
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(net::local_port(listener));
  options.masterListenFd = listener.release();
  options.isServer = true;
  options.waitWorkers = false;
  options.useLibUV = false;
  store_ = std::make_unique<c10d::TCPStore>("127.0.0.1", options);
}

StoreServer::~StoreServer() = default;

void StoreServer::set(const std::string& key, const std::string& value) {
  store_->set(key, std::vector<std::uint8_t>(value.begin(), value.end()));
}

int StoreServer::port() const {
  return store_->getPort();
}

}  // namespace thinwire::testing
