#include "runtime/checkpoint/state_file.h"

#include <fmt/format.h>

#include <sstream>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "runtime/checkpoint/safetensors.h"

namespace thinwire {
namespace {

constexpr std::string_view state_prefix = "state:";

bool is_flat_piece(const StateEntry& entry) {
  return entry.begin >= 0 && entry.begin <= entry.end && entry.tensor.dim() == 1 &&
         entry.tensor.numel() == entry.end - entry.begin;
}

std::string describe(const StateEntry& entry) {
  return entry.kind == StateKind::averaged
             ? "averaged"
             : fmt::format("ranged {} {} {}", entry.begin, entry.end, entry.name);
}

// Fills kind, name and range of an entry from `describe`'s text. False if that is malformed.
bool parse_description(const std::string& text, const std::string& key, StateEntry& entry) {
  entry.name = key;
  if (text == "averaged") {
    entry.kind = StateKind::averaged;
    return true;
  }
  std::istringstream words(text);
  std::string kind;
  words >> kind >> entry.begin >> entry.end;
  words.get();
  std::getline(words, entry.name, '\0');
  entry.kind = StateKind::ranged;
  return kind == "ranged" && is_flat_piece(entry) && state_key(entry) == key;
}

}  // namespace

void StateCollector::tensor(const StateEntry& entry) {
  check(entry.tensor.defined(), "state '" + entry.name + "' is a defined tensor");
  check(entry.kind != StateKind::ranged || is_flat_piece(entry),
        "ranged state '" + entry.name + "' is flat and as long as its range");
  check(keys_.insert(state_key(entry)).second, "state '" + entry.name + "' is shown once");
  entries_.push_back(entry);
}

void StateCollector::counter(const std::string& name, std::int64_t& value) {
  check(counters_.emplace(name, value).second, "counter '" + name + "' is shown once");
}

std::string state_key(const StateEntry& entry) {
  return entry.kind == StateKind::ranged
             ? fmt::format("{}[{}:{}]", entry.name, entry.begin, entry.end)
             : entry.name;
}

std::string write_state(const std::vector<StateEntry>& entries) {
  std::vector<NamedTensor> tensors;
  std::map<std::string, std::string> metadata;
  for (const auto& entry : entries) {
    const std::string key = state_key(entry);
    tensors.push_back({key, entry.tensor});
    if (entry.kind != StateKind::replicated) {
      metadata[std::string(state_prefix) + key] = describe(entry);
    }
  }
  return write_safetensors(tensors, metadata);
}

std::vector<StateEntry> read_state(std::string_view bytes, const std::string& place) {
  const Safetensors file = read_safetensors(bytes, place);
  std::vector<StateEntry> entries;
  for (const auto& [key, tensor] : file.tensors) {
    StateEntry entry{key, StateKind::replicated, tensor};
    const auto found = file.metadata.find(std::string(state_prefix) + key);
    if (found != file.metadata.end() && !parse_description(found->second, key, entry)) {
      throw DataError(
          fmt::format("{}: tensor '{}': '{}' does not describe it; the file is damaged, "
                      "use another checkpoint",
                      place, printable(key), printable(found->second)));
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace thinwire
