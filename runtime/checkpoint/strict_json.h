// JSON from a file that is not trusted.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace thinwire {

// Parses one JSON object and nothing after it, in time that grows as the text. Throws `DataError`
// naming `place` if it is not well formed, not an object, has a key twice anywhere, or more than 8
// levels: so what is returned can be walked by recursion.
nlohmann::json parse_object(std::string_view text, const std::string& place);

// The value if it is an integer in [0, 2^63).
std::optional<std::int64_t> as_size(const nlohmann::json& value);

// The value if it is an object of strings.
std::optional<std::map<std::string, std::string>> as_strings(const nlohmann::json& value);

// The value as a message may show it.
std::string shown(const nlohmann::json& value);

}  // namespace thinwire
