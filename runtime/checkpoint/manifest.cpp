#include "runtime/checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/text.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/strict_json.h"

namespace thinwire {
namespace {

using nlohmann::json;

constexpr std::int64_t format_version = 1;
// A hundred thousand ranks need 10 MB.
constexpr std::int64_t max_manifest_bytes = 16 << 20;

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

// The fields of a manifest, each looked at before it is believed.
class Fields {
 public:
  Fields(const json& object, const std::string& place) : object_(object), place_(place) {}

  std::int64_t size(const char* name) const {
    const auto value = as_size(member(name));
    if (!value) wrong(name);
    return *value;
  }
  std::string text(const char* name) const {
    if (!member(name).is_string()) wrong(name);
    return member(name).get<std::string>();
  }
  std::map<std::string, std::string> texts(const char* name) const {
    auto value = as_strings(member(name));
    if (!value) wrong(name);
    return std::move(*value);
  }
  std::map<std::string, std::int64_t> sizes(const char* name) const {
    std::map<std::string, std::int64_t> values;
    if (!member(name).is_object()) wrong(name);
    for (const auto& [key, item] : member(name).items()) {
      const auto value = as_size(item);
      if (!value) damaged(place_, fmt::format("counter '{}' is {}", printable(key), shown(item)));
      values[key] = *value;
    }
    return values;
  }
  std::vector<Fields> list(const char* name) const {
    std::vector<Fields> items;
    if (!member(name).is_array()) wrong(name);
    for (const auto& item : member(name)) items.emplace_back(item, place_);
    return items;
  }
  [[noreturn]] void wrong(const char* name) const {
    damaged(place_, fmt::format("its field '{}' is {}", name, shown(member(name))));
  }

 private:
  const json& member(const char* name) const {
    const auto found = object_.is_object() ? object_.find(name) : object_.end();
    if (found == object_.end()) damaged(place_, fmt::format("it has no field '{}'", name));
    return *found;
  }

  const json& object_;
  const std::string& place_;
};

ManifestFile parse_file(const Fields& fields) {
  ManifestFile file{fields.text("name"), fields.size("size"), fields.text("xxh3_128")};
  if (file.xxh3_128.size() != 32 ||
      file.xxh3_128.find_first_not_of("0123456789abcdef") != std::string::npos) {
    fields.wrong("xxh3_128");
  }
  return file;
}

Manifest parse_fields(const json& object, const std::string& place) {
  const Fields fields(object, place);
  if (fields.size("version") != format_version) {
    throw DataError(fmt::format(
        "{}: written in format {}, this program reads {}; use the program that wrote it", place,
        fields.size("version"), format_version));
  }
  Manifest manifest;
  manifest.step = fields.size("step");
  const std::int64_t world_size = fields.size("world_size");
  manifest.counters = fields.sizes("counters");
  manifest.info = fields.texts("info");
  for (const Fields& file : fields.list("files")) manifest.files.push_back(parse_file(file));
  std::vector<std::string> names;
  for (const auto& file : manifest.files) names.push_back(file.name);
  // In this order, so that a wrong size never makes a long list.
  if (world_size < 1 || world_size > std::numeric_limits<int>::max() ||
      world_size + 2 != std::ssize(names) ||
      names != expected_files(static_cast<int>(world_size))) {
    damaged(place, "its files are not those of a checkpoint");
  }
  manifest.world_size = static_cast<int>(world_size);
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
  for (const auto& [name, value] : manifest.counters) {
    check(value >= 0, "counter '" + name + "' is not negative");
  }
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
  return parse_fields(parse_object(text, place), place);
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
  return parse_manifest(files.read_file(path, max_manifest_bytes), path);
}

std::string read_listed_file(FileSystem& files, const std::string& folder,
                             const ManifestFile& listed) {
  const std::string path = path_of(folder, listed.name);
  if (!files.exists(path)) damaged(path, "it is missing");
  std::string bytes = files.read_file(path, listed.size);
  if (static_cast<std::int64_t>(bytes.size()) != listed.size) {
    damaged(path, fmt::format("it has {} bytes, not {}", bytes.size(), listed.size));
  }
  if (hash128_hex(bytes.data(), bytes.size()) != listed.xxh3_128) {
    read_safetensors(bytes, path);  // throws with the tensor's name if its data are what changed
    damaged(path, "its header does not have the checksum that the manifest gives");
  }
  return bytes;
}

std::string read_listed_file(FileSystem& files, const std::string& folder, const Manifest& manifest,
                             std::string_view name) {
  const auto listed = std::find_if(manifest.files.begin(), manifest.files.end(),
                                   [&](const ManifestFile& file) { return file.name == name; });
  check(listed != manifest.files.end(), "the manifest lists the file");
  return read_listed_file(files, folder, *listed);
}

}  // namespace thinwire
