#include "runtime/watch/messages.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <optional>

#include "collectives/base/text.h"

namespace thinwire::watch {
namespace {

// What a sentence and what an operation's name may be long.
constexpr std::size_t kLongestSentence = 2000;
constexpr std::size_t kLongestName = 200;
// No step, operation or wait has a larger number; sums of them stay far from overflowing.
constexpr std::int64_t kLargestNumber = std::int64_t{1} << 50;

// "word rest" -> word; `text` becomes the rest.
std::string_view take_until(std::string_view& text, char separator) {
  const auto end = text.find(separator);
  const std::string_view word = text.substr(0, end);
  text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  return word;
}

std::optional<std::int64_t> number(std::string_view text, std::int64_t low) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  if (!whole || value < low || value > kLargestNumber) return std::nullopt;
  return value;
}

std::optional<Activity> parse_report(std::string_view text) {
  std::string_view numbers = take_until(text, '\t');
  const auto step = number(take_until(numbers, ' '), 0);
  const auto operations = number(take_until(numbers, ' '), 0);
  const auto waiting = number(take_until(numbers, ' '), -1);
  if (!step || !operations || !waiting) return std::nullopt;
  Activity activity;
  activity.step = *step;
  activity.operations = *operations;
  if (*waiting >= 0) activity.waiting = std::chrono::milliseconds(*waiting);
  activity.doing = printable(take_until(text, '\t'), kLongestName);
  activity.operation = printable(text, kLongestName);
  return activity;
}

}  // namespace

std::string report_line(const Activity& activity) {
  return fmt::format("report {} {} {}\t{}\t{}", activity.step, activity.operations,
                     activity.waiting ? activity.waiting->count() : -1, activity.doing,
                     activity.operation);
}

std::string lost_line(const std::string& reason) {
  return "lost " + reason;
}

std::string fail_line(const std::string& reason) {
  return "fail " + reason;
}

std::string bye_line() {
  return "bye";
}

Message parse_message(std::string_view line) {
  Message message;
  const std::string_view word = take_until(line, ' ');
  if (word == "report") {
    if (const auto activity = parse_report(line)) {
      message.kind = Message::Kind::report;
      message.activity = *activity;
    }
  } else if (word == "lost" || word == "fail") {
    message.kind = word == "lost" ? Message::Kind::lost : Message::Kind::failed;
    message.text = printable(line, kLongestSentence);
  } else if (word == "bye" && line.empty()) {
    message.kind = Message::Kind::bye;
  }
  return message;
}

}  // namespace thinwire::watch
