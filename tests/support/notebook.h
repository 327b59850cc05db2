// Where ranks that are threads of one process, with sockets of their own, find each other.
#pragma once

#include <mutex>
#include <optional>

#include "collectives/sockets/rendezvous.h"

namespace thinwire::testing {

// A place for the ranks of one process to leave word of where rank 0 is.
class Notebook final : public sockets::Directory {
 public:
  void publish(const sockets::Contact& contact) override {
    const std::lock_guard lock(mutex_);
    contact_ = contact;
  }
  std::optional<sockets::Contact> look_up() override {
    const std::lock_guard lock(mutex_);
    return contact_;
  }

 private:
  std::mutex mutex_;
  std::optional<sockets::Contact> contact_;
};

}  // namespace thinwire::testing
