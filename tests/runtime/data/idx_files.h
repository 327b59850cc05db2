// IDX files for tests, made by hand rather than by the code under test.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace thinwire {

// A folder that goes away with its object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = testing::TempDir() + "thinwire-data-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void write(const std::string& name, const std::string& contents) const {
    std::ofstream(path_ / name, std::ios::binary) << contents;
  }

 private:
  std::filesystem::path path_;
};

// The bytes of an IDX file of unsigned bytes.
inline std::string idx(int dimensions, const std::vector<std::uint32_t>& extents,
                       const std::vector<std::uint8_t>& values) {
  std::string text{'\0', '\0', '\x08', static_cast<char>(dimensions)};
  for (const std::uint32_t extent : extents) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      text += static_cast<char>(static_cast<std::uint8_t>(extent >> shift));
    }
  }
  text.append(values.begin(), values.end());
  return text;
}

inline std::string gzip(std::string text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string compressed(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(text.data());
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(compressed.data());
  stream.avail_out = static_cast<uInt>(compressed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  compressed.resize(stream.total_out);
  deflateEnd(&stream);
  return compressed;
}

// Two samples of 2 x 3 pixels for training, labels 3 and 9, and one for testing; plain files.
inline void write_small_set(const TemporaryFolder& folder) {
  folder.write("train-images-idx3-ubyte",
               idx(3, {2, 2, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
  folder.write("train-labels-idx1-ubyte", idx(1, {2}, {3, 9}));
  folder.write("t10k-images-idx3-ubyte", idx(3, {1, 2, 3}, {1, 2, 3, 4, 5, 6}));
  folder.write("t10k-labels-idx1-ubyte", idx(1, {1}, {0}));
}

}  // namespace thinwire
