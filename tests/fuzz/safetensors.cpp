// Files of a checkpoint, of any bytes.
//
// Input: a byte; if it is even the file, else its header and, behind a zero, its data: so the
// header's length is right and what follows is looked at.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "collectives/base/error.h"
#include "runtime/checkpoint/state_file.h"

namespace thinwire {
namespace {

std::string file_of(const std::uint8_t* data, std::size_t size) {
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) return rest;
  const std::size_t end = std::min(rest.find('\0'), rest.size());
  const std::uint64_t length = end;
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  file += rest.substr(0, end);
  if (end < rest.size()) file += rest.substr(end + 1);
  return file;
}

void require_same(const StateEntry& a, const StateEntry& b) {
  check(a.name == b.name && a.kind == b.kind && a.begin == b.begin && a.end == b.end,
        "an entry is read as it was written");
  check(a.tensor.scalar_type() == b.tensor.scalar_type() && a.tensor.sizes() == b.tensor.sizes(),
        "its shape and dtype too");
  const std::size_t bytes = a.tensor.nbytes();
  check(bytes == 0 || std::memcmp(a.tensor.const_data_ptr(), b.tensor.const_data_ptr(), bytes) == 0,
        "and its data");
}

void try_input(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return;
  std::vector<StateEntry> entries;
  try {
    entries = read_state(file_of(data, size), "file");
  } catch (const DataError& error) {
    check(std::strlen(error.what()) < 1000, "a message is short");
    return;
  }
  const std::string written = write_state(entries);
  const std::vector<StateEntry> again = read_state(written, "again");
  check_equal(again.size(), entries.size(), "entries");
  for (std::size_t i = 0; i < entries.size(); ++i) require_same(entries[i], again[i]);
  check(write_state(again) == written, "what is written is a function of the entries");
}

}  // namespace
}  // namespace thinwire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thinwire::try_input(data, size);
  return 0;
}
