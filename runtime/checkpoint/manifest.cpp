#include "runtime/checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

#include "runtime/base/error.h"
#include "runtime/base/hash.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/strict_json.h"

namespace thinwire {
namespace {

using nlohmann::json;

constexpr std::int64_t format_version = 1;

std::string prefix_for(std::string_view rest) {
  return fmt::format(R"({{"xxh3_128":"{}",)", hash128_hex(rest.data(), rest.size()));
}

std::string path_of(const std::string& folder, std::string_view name) {
  return fmt::format("{}/{}", folder, name);
}

[[noreturn]] void damaged(const std::string& place, const std::string& what) {
  throw DataError(fmt::format("{}: {}; the checkpoint is damaged, use another", place, what));
}

// The names of all files of a checkpoint, in the order of its manifest.
std::vector<std::string> expected_files(int world_size) {
  std::vector<std::string> names{std::string(model_file_name), std::string(optimizer_file_name)};
  for (int rank = 0; rank < world_size; ++rank) names.push_back(rank_file_name(rank));
  return names;
}

std::map<std::string, std::int64_t> parse_counters(const json& object) {
  std::map<std::string, std::int64_t> counters;
  for (const auto& [name, value] : object.items()) {
    if (!value.is_number_integer()) throw json::other_error::create(501, name, &object);
    counters[name] = value.get<std::int64_t>();
  }
  return counters;
}

Manifest parse_fields(const json& object, const std::string& place) {
  Manifest manifest;
  manifest.step = object.at("step").get<std::int64_t>();
  manifest.world_size = object.at("world_size").get<int>();
  manifest.counters = parse_counters(object.at("counters"));
  manifest.info = object.at("info").get<std::map<std::string, std::string>>();
  for (const auto& file : object.at("files")) {
    manifest.files.push_back({file.at("name").get<std::string>(),
                              file.at("size").get<std::int64_t>(),
                              file.at("xxh3_128").get<std::string>()});
  }
  std::vector<std::string> names;
  for (const auto& file : manifest.files) names.push_back(file.name);
  if (manifest.world_size < 1 ||
      static_cast<std::size_t>(manifest.world_size) + 2 != names.size() ||
      names != expected_files(manifest.world_size)) {
    damaged(place, "its files are not those of a checkpoint");
  }
  return manifest;
}

}  // namespace

std::string rank_file_name(int rank) {
  return fmt::format("rank-{:05}.safetensors", rank);
}

std::string checkpoint_folder(const std::string& root, std::int64_t step) {
  return fmt::format("{}/step-{:08}", root, step);
}

std::optional<std::int64_t> step_of_folder(const std::string& name) {
  constexpr std::string_view prefix = "step-";
  std::int64_t step = 0;
  if (!name.starts_with(prefix)) return std::nullopt;
  std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
  // Only the exact spelling: "step-42" or "step-00000042.bak" are somebody else's.
  if (step < 0 || checkpoint_folder("", step) != "/" + name) return std::nullopt;
  return step;
}

std::string write_manifest(const Manifest& manifest) {
  json files = json::array();
  for (const auto& file : manifest.files) {
    files.push_back({{"name", file.name}, {"size", file.size}, {"xxh3_128", file.xxh3_128}});
  }
  const json object = {{"counters", manifest.counters}, {"files", files},
                       {"info", manifest.info},         {"step", manifest.step},
                       {"version", format_version},     {"world_size", manifest.world_size}};
  // A configuration may hold a path that is not UTF-8; that is no reason to lose a checkpoint.
  const std::string text = object.dump(-1, ' ', false, json::error_handler_t::replace);
  const std::string rest = text.substr(1);
  return prefix_for(rest) + rest;
}

Manifest parse_manifest(std::string_view text, const std::string& place) {
  const std::size_t prefix_size = prefix_for("").size();
  if (text.size() < prefix_size ||
      text.substr(0, prefix_size) != prefix_for(text.substr(prefix_size))) {
    damaged(place, "its text does not have the checksum at its start");
  }
  try {
    const json object = parse_object(text, place);
    if (object.at("version") != format_version) {
      throw DataError(
          fmt::format("{}: written in format {}, this program reads {}; use the program "
                      "that wrote it",
                      place, object.at("version").dump(), format_version));
    }
    return parse_fields(object, place);
  } catch (const json::exception& error) {
    damaged(place, fmt::format("a field is missing or of another type ({})", error.what()));
  }
}

Manifest read_manifest(FileSystem& files, const std::string& folder) {
  const std::string path = path_of(folder, manifest_name);
  if (!files.exists(folder)) {
    throw DataError(fmt::format("{}: there is no such checkpoint; check the path", folder));
  }
  if (!files.exists(path)) {
    throw DataError(fmt::format(
        "{}: holds no manifest.json, so its saving was not finished; use an earlier checkpoint",
        folder));
  }
  return parse_manifest(files.read_file(path), path);
}

std::string read_listed_file(FileSystem& files, const std::string& folder, const Manifest& manifest,
                             std::string_view name) {
  const auto listed = std::find_if(manifest.files.begin(), manifest.files.end(),
                                   [&](const ManifestFile& file) { return file.name == name; });
  check(listed != manifest.files.end(), "the manifest lists the file");
  const std::string path = path_of(folder, name);
  if (!files.exists(path)) damaged(path, "it is missing");
  std::string bytes = files.read_file(path);
  if (static_cast<std::int64_t>(bytes.size()) != listed->size) {
    damaged(path, fmt::format("it has {} bytes, not {}", bytes.size(), listed->size));
  }
  if (hash128_hex(bytes.data(), bytes.size()) != listed->xxh3_128) {
    read_safetensors(bytes, path);  // throws with the tensor's name if its data are what changed
    damaged(path, "its header does not have the checksum that the manifest gives");
  }
  return bytes;
}

}  // namespace thinwire
