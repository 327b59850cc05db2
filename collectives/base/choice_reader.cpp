#include "collectives/base/choice_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

constexpr std::size_t kMostNumbers = 1000;  // for one key
constexpr std::size_t kLongestWord = 100;   // that is compared with known ones

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  std::size_t start = 0;
  while (true) {
    const std::size_t end = text.find(separator, start);
    parts.emplace_back(text.substr(start, end - start));
    if (end == std::string_view::npos) return parts;
    start = end + 1;
  }
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substitute, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

template <typename T>
T parse(const std::string& what, const std::string& text, T low, T high) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  // Written so that NaN is refused too.
  if (!whole || !(value >= low && value <= high)) {
    throw UsageError(fmt::format("{} is '{}'; give {} from {} to {}", what, printable(text),
                                 std::is_integral_v<T> ? "a whole number" : "a number", low, high));
  }
  return value;
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  if (word.size() > kLongestWord) return best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 2) + 1;
  for (const auto& candidate : known) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& known) {
  const auto longer = std::find_if(known.begin(), known.end(),
                                   [&](const std::string& name) { return name.starts_with(word); });
  const std::string near = longer != known.end() ? *longer : nearest(word, known);
  return near.empty() ? "" : fmt::format("did you mean '{}'? ", near);
}

std::int64_t parse_integer(const std::string& what, const std::string& text, std::int64_t low,
                           std::int64_t high) {
  return parse<std::int64_t>(what, text, low, high);
}

double parse_number(const std::string& what, const std::string& text, double low, double high) {
  return parse<double>(what, text, low, high);
}

ChoiceReader::ChoiceReader(std::string what, std::string_view text) : what_(std::move(what)) {
  const std::size_t colon = text.find(':');
  name_ = std::string(text.substr(0, colon));
  if (name_.empty())
    throw UsageError(fmt::format("{} is empty; give NAME or NAME:KEY=VALUE", what_));
  if (colon == std::string_view::npos) return;
  std::string key;
  for (const auto& item : split(text.substr(colon + 1), ',')) {
    const std::size_t equals = item.find('=');
    if (equals == std::string::npos) {
      if (key.empty() || item.empty()) {
        throw UsageError(fmt::format("{} '{}': '{}' is no KEY=VALUE; write {}:KEY=VALUE,...", what_,
                                     printable(text), printable(item), printable(name_)));
      }
      items_[key] += "," + item;
      continue;
    }
    key = item.substr(0, equals);
    if (key.empty() || equals + 1 == item.size()) {
      throw UsageError(fmt::format("{} '{}': '{}' lacks a key or a value; write {}:KEY=VALUE,...",
                                   what_, printable(text), printable(item), printable(name_)));
    }
    if (!items_.emplace(key, item.substr(equals + 1)).second) {
      throw UsageError(fmt::format("{} '{}': key '{}' is given twice; give it once", what_,
                                   printable(text), printable(key)));
    }
  }
}

std::string ChoiceReader::take(const std::string& key) {
  asked_.push_back(key);
  const auto found = items_.find(key);
  if (found == items_.end()) return {};
  std::string value = found->second;
  items_.erase(found);
  return value;
}

std::int64_t ChoiceReader::integer(const std::string& key, std::int64_t fallback, std::int64_t low,
                                   std::int64_t high) {
  const std::string value = take(key);
  if (value.empty()) return fallback;
  return parse_integer(fmt::format("{} {}: '{}'", what_, name_, key), value, low, high);
}

double ChoiceReader::number(const std::string& key, double fallback, double low, double high) {
  const std::string value = take(key);
  if (value.empty()) return fallback;
  return parse_number(fmt::format("{} {}: '{}'", what_, name_, key), value, low, high);
}

std::string ChoiceReader::text(const std::string& key, const std::string& fallback) {
  const std::string value = take(key);
  return value.empty() ? fallback : value;
}

std::vector<std::int64_t> ChoiceReader::integers(const std::string& key,
                                                 const std::vector<std::int64_t>& fallback,
                                                 std::int64_t low, std::int64_t high) {
  const std::string value = take(key);
  if (value.empty()) return fallback;
  std::vector<std::int64_t> numbers;
  const std::vector<std::string> parts = split(value, ',');
  if (parts.size() > kMostNumbers) {
    throw UsageError(fmt::format("{} {}: '{}' has {} numbers; give at most {}", what_, name_, key,
                                 parts.size(), kMostNumbers));
  }
  for (const auto& part : parts) {
    numbers.push_back(
        parse_integer(fmt::format("{} {}: '{}'", what_, name_, key), part, low, high));
  }
  return numbers;
}

void ChoiceReader::done() const {
  if (items_.empty()) return;
  const std::string& key = items_.begin()->first;
  const std::string near = nearest(key, asked_);
  std::string advice = asked_.empty() ? fmt::format("{} takes no options", name_)
                                      : fmt::format("it takes {}", fmt::join(asked_, ", "));
  if (!near.empty()) advice = fmt::format("did you mean '{}'? ", near) + advice;
  throw UsageError(
      fmt::format("{} {}: unknown key '{}'; {}", what_, name_, printable(key), advice));
}

void ChoiceReader::unknown_name(const std::vector<std::string>& known) const {
  const std::string near = nearest(name_, known);
  throw UsageError(fmt::format("{} '{}' is not known; {}choose from {}", what_, printable(name_),
                               near.empty() ? "" : fmt::format("did you mean '{}'? ", near),
                               fmt::join(known, ", ")));
}

}  // namespace thinwire
