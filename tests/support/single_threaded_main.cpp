// main() of GoogleTest binaries that fork or raise signals: there is no other thread.
#include <gmock/gmock.h>

#include "tests/support/own_folder.h"

int main(int argc, char** argv) {
  const thinwire::testing::OwnFolder folder;
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
