// A c10d TCPStore for tests, as a launcher would run one.
#pragma once

#include <memory>
#include <string>

namespace c10d {
class TCPStore;
}

namespace thinwire::testing {

// Serves at a free port of this machine for as long as it lives.
class StoreServer {
 public:
  StoreServer();
  ~StoreServer();

  int port() const;
  // What a stranger may do, too.
  void set(const std::string& key, const std::string& value);

 private:
  std::unique_ptr<c10d::TCPStore> store_;
};

}  // namespace thinwire::testing
