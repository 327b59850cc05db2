// Config files of any bytes.
#include <cstdint>
#include <cstring>
#include <string_view>

#include "collectives/base/error.h"
#include "launch/config.h"

namespace thinwire {
namespace {

void try_input(const std::uint8_t* data, std::size_t size) {
  TrainRequest request;
  try {
    read_config({reinterpret_cast<const char*>(data), size}, "file", request);
  } catch (const UsageError& error) {
    check(std::strlen(error.what()) < 2000, "a message is short");
    return;
  }
  const std::string text = config_text(request);
  TrainRequest again;
  read_config(text, "again", again);
  check(as_map(again) == as_map(request), "what is printed reads back as the same");
  check(config_text(again) == text, "and is printed as the same");
}

}  // namespace
}  // namespace thinwire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thinwire::try_input(data, size);
  return 0;
}
