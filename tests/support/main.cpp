// main() of every GoogleTest binary that runs ranks as threads.
#include <gtest/gtest.h>

#include "tests/support/hang_watchdog.h"
#include "tests/support/own_folder.h"

int main(int argc, char** argv) {
  const thinwire::testing::OwnFolder folder;
  ::testing::InitGoogleTest(&argc, argv);
  // GoogleTest owns and deletes the listener.
  ::testing::UnitTest::GetInstance()->listeners().Append(
      new thinwire::testing::HangWatchdog(std::chrono::seconds(300)));
  return RUN_ALL_TESTS();
}
