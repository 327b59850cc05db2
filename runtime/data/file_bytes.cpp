#include "runtime/data/file_bytes.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <memory>

#include "runtime/base/error.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

[[noreturn]] void refuse(const fs::path& file, const std::string& what, const std::string& remedy) {
  throw DataError(fmt::format("'{}' {}; {}", file.string(), what, remedy));
}

Bytes read_raw(const fs::path& file, const std::string& remedy) {
  std::error_code error;
  if (!fs::is_regular_file(file, error)) {
    throw DataError(fmt::format("there is no file '{}'; {}", file.string(), remedy));
  }
  std::ifstream stream(file, std::ios::binary);
  Bytes bytes(stream ? fs::file_size(file, error) : 0);
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
  stream.next_in = compressed.data();
  stream.avail_in = static_cast<uInt>(compressed.size());
  Bytes bytes;
  int status = Z_OK;
  while (status == Z_OK) {
    const std::size_t done = bytes.size();
    bytes.resize(std::max<std::size_t>(2 * done, 1 << 16));
    stream.next_out = bytes.data() + done;
    stream.avail_out = static_cast<uInt>(bytes.size() - done);
    status = inflate(&stream, Z_NO_FLUSH);
    bytes.resize(bytes.size() - stream.avail_out);
  }
  if (status == Z_BUF_ERROR) refuse(file, "ends in the middle of its gzip data", remedy);
  if (status != Z_STREAM_END) {
    refuse(file, fmt::format("is damaged gzip data ({})", stream.msg ? stream.msg : "zlib error"),
           remedy);
  }
  if (stream.avail_in != 0) {
    refuse(file, fmt::format("has {} bytes after its gzip data", stream.avail_in), remedy);
  }
  return bytes;
}

}  // namespace

Bytes read_file_bytes(const fs::path& file, const std::string& remedy) {
  Bytes bytes = read_raw(file, remedy);
  return is_gzip(bytes) ? gunzip(file, bytes, remedy) : bytes;
}

}  // namespace thinwire
