#include "runtime/checkpoint/strict_json.h"

#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

using nlohmann::json;

constexpr std::size_t kDeepest = 8;
constexpr std::size_t kShownBytes = 60;

// Builds the value. json::parse with a callback does so too, but looks at all neighbours of each
// object that ends, and knows no limit.
class Builder final : public json::json_sax_t {
 public:
  json take() { return std::move(root_); }
  // Why parsing ended, if not for the syntax.
  const std::string& problem() const { return problem_; }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t& value) override { return add(std::move(value)); }
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    const auto [member, added] = open_.back()->get_ref<json::object_t&>().emplace(name, nullptr);
    if (!added) return refuse(fmt::format("the key '{}' occurs twice", printable(name)));
    member_ = &member->second;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  // Stores a value where the next one belongs, and returns it there.
  json& place(json value) {
    if (open_.empty()) return root_ = std::move(value);
    if (open_.back()->is_object()) return *member_ = std::move(value);
    auto& items = open_.back()->get_ref<json::array_t&>();
    items.push_back(std::move(value));
    return items.back();
  }
  bool add(json value) {
    place(std::move(value));
    return true;
  }
  bool open(json container) {
    if (open_.size() == kDeepest) {
      return refuse(fmt::format("JSON of more than {} levels", kDeepest));
    }
    open_.push_back(&place(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  bool refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  json root_;
  std::vector<json*> open_;  // containers that have not ended: an outer one grows only after them
  json* member_ = nullptr;   // of the innermost object: that of the key just read
  std::string problem_;
};

}  // namespace

json parse_object(std::string_view text, const std::string& place) {
  const auto damaged = [&](const std::string& what) {
    return DataError(fmt::format("{}: {}; the file is damaged, use another", place, what));
  };
  Builder builder;
  if (!json::sax_parse(text, &builder)) {
    throw damaged(builder.problem().empty() ? "not well-formed JSON" : builder.problem());
  }
  json value = builder.take();
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

std::string shown(const json& value) {
  return printable(value.dump(-1, ' ', false, json::error_handler_t::replace), kShownBytes);
}

}  // namespace thinwire
