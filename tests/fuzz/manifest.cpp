// Manifests of any bytes.
//
// Input: a byte; if it is even the file, else what its checksum covers.
#include <cstdint>
#include <cstring>
#include <string>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "runtime/checkpoint/manifest.h"

namespace thinwire {
namespace {

std::string file_of(const std::uint8_t* data, std::size_t size) {
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) return rest;
  return "{\"xxh3_128\":\"" + hash128_hex(rest.data(), rest.size()) + "\"," + rest;
}

void try_input(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return;
  Manifest manifest;
  try {
    manifest = parse_manifest(file_of(data, size), "file");
  } catch (const DataError& error) {
    check(std::strlen(error.what()) < 1000, "a message is short");
    return;
  }
  check(manifest.step >= 0 && manifest.world_size >= 1, "a step and ranks");
  for (const auto& file : manifest.files) check(file.size >= 0, "a size");
  const std::string written = write_manifest(manifest);
  const Manifest again = parse_manifest(written, "again");
  check(again.step == manifest.step && again.world_size == manifest.world_size &&
            again.counters == manifest.counters && again.info == manifest.info,
        "fields are read as they were written");
  check(write_manifest(again) == written, "the files too");
}

}  // namespace
}  // namespace thinwire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thinwire::try_input(data, size);
  return 0;
}
