#include "runtime/checkpoint/strict_json.h"

#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "runtime/base/error.h"

namespace thinwire {

using nlohmann::json;

json parse_object(std::string_view text, const std::string& place) {
  const auto damaged = [&](const std::string& what) {
    return DataError(fmt::format("{}: {}; the file is damaged, use another", place, what));
  };
  std::vector<std::set<std::string>> keys;
  const auto refuse_repeated_keys = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) throw damaged("the key '" + key + "' occurs twice");
    }
    return true;
  };
  json value;
  try {
    value = json::parse(text, refuse_repeated_keys);
  } catch (const json::exception&) {
    throw damaged("not well-formed JSON");
  }
  if (!value.is_object()) throw damaged("not a JSON object");
  return value;
}

std::optional<std::int64_t> as_size(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return std::nullopt;
  }
  return static_cast<std::int64_t>(number);
}

std::optional<std::map<std::string, std::string>> as_strings(const json& value) {
  if (!value.is_object()) return std::nullopt;
  std::map<std::string, std::string> strings;
  for (const auto& [key, item] : value.items()) {
    if (!item.is_string()) return std::nullopt;
    strings[key] = item.get<std::string>();
  }
  return strings;
}

}  // namespace thinwire
