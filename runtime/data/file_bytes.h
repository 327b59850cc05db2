// Data files as they lie on a disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace thinwire {

// The bytes of `file`; one that begins like gzip is one gzip member and is decompressed. `remedy`
// says what to do about a file that is missing or damaged, and ends the message.
// Throws DataError where the file is missing or damaged, IoError where it cannot be read.
std::vector<std::uint8_t> read_file_bytes(const std::filesystem::path& file,
                                          const std::string& remedy);

}  // namespace thinwire
