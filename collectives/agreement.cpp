#include "collectives/agreement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using Lines = std::vector<std::string>;

std::optional<std::string> value_of(const Facts& facts, const std::string& key) {
  const auto found = facts.find(key);
  return found == facts.end() ? std::nullopt : std::optional(found->second);
}

Lines lines_of(const std::optional<std::string>& value) {
  if (!value) return {"(not given)"};
  Lines lines(1);
  for (const char c : *value) {
    if (c == '\n') {
      lines.emplace_back();
    } else {
      lines.back() += c;
    }
  }
  for (auto& line : lines) {
    if (line.empty()) line = "(empty)";
  }
  return lines;
}

std::string line_at(const Lines& lines, std::size_t index) {
  return index < lines.size() ? lines[index] : "(ends before)";
}

// How one key's values differ; they are not all equal.
std::string difference(const std::string& key, const std::vector<Lines>& values) {
  std::size_t index = 0;
  const auto same = [&](const Lines& lines) {
    return line_at(lines, index) == line_at(values[0], index);
  };
  const std::size_t longest =
      std::max_element(values.begin(), values.end(), [](const Lines& a, const Lines& b) {
        return a.size() < b.size();
      })->size();
  while (index < longest && std::all_of(values.begin(), values.end(), same)) ++index;

  std::vector<std::string> order;
  std::map<std::string, std::vector<int>> holders;
  for (std::size_t rank = 0; rank < values.size(); ++rank) {
    const std::string line = line_at(values[rank], index);
    if (!holders.contains(line)) order.push_back(line);
    holders[line].push_back(static_cast<int>(rank));
  }
  std::vector<std::string> parts;
  for (const auto& line : order) {
    parts.push_back(fmt::format("{} ({})", line, rank_list(holders[line])));
  }
  const std::string place = longest > 1 ? fmt::format("{}, line {}", key, index + 1) : key;
  return fmt::format("{}: {}", place, fmt::join(parts, ", "));
}

}  // namespace

std::string rank_list(const std::vector<int>& ranks) {
  std::vector<std::string> runs;
  for (std::size_t first = 0; first < ranks.size();) {
    std::size_t last = first;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    runs.push_back(first == last ? std::to_string(ranks[first])
                                 : fmt::format("{}-{}", ranks[first], ranks[last]));
    first = last + 1;
  }
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(runs, ", "));
}

std::string differences(const std::vector<Facts>& facts) {
  std::set<std::string> keys;
  for (const auto& of_rank : facts) {
    for (const auto& [key, value] : of_rank) keys.insert(key);
  }
  std::vector<std::string> found;
  for (const auto& key : keys) {
    std::vector<std::optional<std::string>> values;
    for (const auto& of_rank : facts) values.push_back(value_of(of_rank, key));
    if (std::equal(values.begin() + 1, values.end(), values.begin())) continue;
    std::vector<Lines> lines;
    for (const auto& value : values) lines.push_back(lines_of(value));
    found.push_back(difference(key, lines));
  }
  return fmt::format("{}", fmt::join(found, "\n"));
}

void require_same_everywhere(Communicator& communicator, const Facts& facts,
                             const std::string& what_to_do) {
  // A binary form: values may be paths, which need not be valid UTF-8.
  std::string packed;
  nlohmann::json::to_msgpack(facts, packed);
  std::vector<Facts> all;
  for (const auto& text : all_gather_text(communicator, packed)) {
    all.push_back(nlohmann::json::from_msgpack(text).get<Facts>());
  }
  const std::string diff = differences(all);
  if (diff.empty()) return;
  throw ConfigurationMismatch(what_to_do + ":\n" + diff);
}

std::string rank_zero_says(Communicator& communicator, const std::function<std::string()>& say) {
  // "=TEXT" is what it says, "65:MESSAGE" an error with its exit code.
  std::string text;
  if (communicator.rank() == 0) {
    try {
      text = "=" + say();
    } catch (const Error& error) {
      text = fmt::format("{}:{}", static_cast<int>(error.code()), error.what());
    }
  }
  text = broadcast_text(communicator, text, 0);
  if (text[0] == '=') return text.substr(1);
  const std::size_t colon = text.find(':');
  throw AgreedError(static_cast<ExitCode>(std::stoi(text.substr(0, colon))),
                    text.substr(colon + 1));
}

}  // namespace thinwire
