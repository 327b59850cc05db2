// What a checkpoint's folder holds, and the names in it.
//
//   <root>/step-00000042/model.safetensors        parameters and buffers by their module names
//                        optimizer.safetensors    other replicated state
//                        rank-00000.safetensors   ... one per rank: its `averaged`, `ranged` state
//                        manifest.json            written last: with it the checkpoint is complete
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/checkpoint/file_system.h"

namespace thinwire {

inline constexpr std::string_view manifest_name = "manifest.json";
inline constexpr std::string_view model_file_name = "model.safetensors";
inline constexpr std::string_view optimizer_file_name = "optimizer.safetensors";
std::string rank_file_name(int rank);

std::string checkpoint_folder(const std::string& root, std::int64_t step);
// The step of a folder called like a checkpoint's, e.g. "step-00000042".
std::optional<std::int64_t> step_of_folder(const std::string& name);

struct ManifestFile {
  std::string name;
  std::int64_t size = 0;  // bytes
  std::string xxh3_128;   // of the whole file, 32 lower-case hex digits
};

// A checkpoint's table of contents.
struct Manifest {
  std::int64_t step = 0;
  int world_size = 1;
  std::map<std::string, std::int64_t> counters;  // none is negative
  std::map<std::string, std::string> info;       // free-form: the run's configuration
  std::vector<ManifestFile> files;               // every file but the manifest itself
};

// Compact JSON that starts with its own checksum: `{"xxh3_128":"<32 hex digits>",`, which covers
// every byte after that.
std::string write_manifest(const Manifest& manifest);

// Throws `DataError` naming `place` if any byte of it changed, or if a newer format wrote it.
Manifest parse_manifest(std::string_view text, const std::string& place);

// Throws `DataError` if the folder holds none, i.e. its saving was never finished.
Manifest read_manifest(FileSystem& files, const std::string& folder);

// The file's bytes, which have exactly the size and the checksum that the manifest gives. Throws
// `DataError` naming the file, and the damaged tensor where that can be found out. A file that is
// too large is refused before it is read.
std::string read_listed_file(FileSystem& files, const std::string& folder,
                             const ManifestFile& listed);
std::string read_listed_file(FileSystem& files, const std::string& folder, const Manifest& manifest,
                             std::string_view name);

}  // namespace thinwire
