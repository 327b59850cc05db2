#include "tests/support/store.h"

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace thinwire::testing {

StoreServer::StoreServer() {
  c10d::TCPStoreOptions options;
  options.port = 0;
  options.isServer = true;
  options.waitWorkers = false;
  store_ = std::make_unique<c10d::TCPStore>("localhost", options);
}

StoreServer::~StoreServer() = default;

int StoreServer::port() const {
  return store_->getPort();
}

std::string StoreServer::get(const std::string& key) const {
  const auto bytes = store_->get(key);
  return {bytes.begin(), bytes.end()};
}

}  // namespace thinwire::testing
