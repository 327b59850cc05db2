// What holds for a loop of the user's own, whatever joins the ranks: one suite, run over threads,
// sockets and MPI.
#pragma once

#include <chrono>
#include <vector>

#include "collectives/communicator.h"

namespace thinwire::testing {

struct AttachTest {
  const char* name;
  // Runs on every rank of a group of two or more, and asserts with GoogleTest. The group can be
  // used again afterwards.
  void (*run)(Communicator&);
  std::chrono::milliseconds timeout;  // of the group
};

const std::vector<AttachTest>& attach_tests();

}  // namespace thinwire::testing
