#include "runtime/data/file_bytes.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <span>

#include "collectives/base/error.h"
#include "collectives/base/memory.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

// zlib counts in 32 bits.
constexpr std::size_t kMostAtOnce = 1 << 30;

[[noreturn]] void refuse(const fs::path& file, const std::string& what, const std::string& remedy) {
  throw DataError(fmt::format("'{}' {}; {}", file.string(), what, remedy));
}

void require_room(const fs::path& file, std::uintmax_t bytes, const std::string& remedy) {
  if (bytes <= static_cast<std::uintmax_t>(memory_of_this_host())) return;
  refuse(file, "has more bytes than this host has memory", remedy);
}

Bytes read_raw(const fs::path& file, const std::string& remedy) {
  std::error_code error;
  if (!fs::is_regular_file(file, error)) {
    throw DataError(fmt::format("there is no file '{}'; {}", file.string(), remedy));
  }
  std::ifstream stream(file, std::ios::binary);
  const std::uintmax_t size = stream ? fs::file_size(file, error) : 0;
  if (!error) require_room(file, size, remedy);
  Bytes bytes(error ? 0 : size);
  // Asking for one byte more than there is would be at the end too, so the count alone decides.
  stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream || error) {
    throw IoError(
        fmt::format("cannot read '{}'; check its permissions and its disk", file.string()));
  }
  return bytes;
}

bool is_gzip(const Bytes& bytes) {
  return bytes.size() >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b;
}

// zlib's gzread() ignores what follows the first member, so the stream is inflated by hand.
Bytes gunzip(const fs::path& file, Bytes& compressed, const std::string& remedy) {
  z_stream stream{};
  check(inflateInit2(&stream, MAX_WBITS + 16) == Z_OK, "inflateInit2");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> guard(&stream, inflateEnd);
  std::span<std::uint8_t> input = compressed;
  Bytes bytes;
  int status = Z_OK;
  while (status == Z_OK) {
    const std::size_t done = bytes.size();
    const std::size_t grown = done + std::clamp<std::size_t>(done, 1 << 16, kMostAtOnce);
    require_room(file, done + grown, remedy);  // while it grows both are there
    bytes.resize(grown);
    stream.next_in = input.data();
    stream.avail_in = static_cast<uInt>(std::min(input.size(), kMostAtOnce));
    stream.next_out = bytes.data() + done;
    stream.avail_out = static_cast<uInt>(bytes.size() - done);
    status = inflate(&stream, Z_NO_FLUSH);
    input = input.subspan(static_cast<std::size_t>(stream.next_in - input.data()));
    bytes.resize(bytes.size() - stream.avail_out);
  }
  if (status == Z_BUF_ERROR) refuse(file, "ends in the middle of its gzip data", remedy);
  if (status != Z_STREAM_END) {
    refuse(file, fmt::format("is damaged gzip data ({})", stream.msg ? stream.msg : "zlib error"),
           remedy);
  }
  if (!input.empty()) {
    refuse(file, fmt::format("has {} bytes after its gzip data", input.size()), remedy);
  }
  return bytes;
}

}  // namespace

Bytes read_file_bytes(const fs::path& file, const std::string& remedy) {
  Bytes bytes = read_raw(file, remedy);
  return is_gzip(bytes) ? gunzip(file, bytes, remedy) : bytes;
}

}  // namespace thinwire
