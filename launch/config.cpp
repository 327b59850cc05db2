#include "launch/config.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <system_error>
#include <vector>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLargestFile = 1 << 20;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr std::string_view kBlanks = " \t";

bool is_blank(char character) {
  return kBlanks.find(character) != std::string_view::npos;
}

std::string_view trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

// Where a comment begins in a line; npos if it has none.
std::size_t comment_in(std::string_view line) {
  std::size_t at = line.find('#');
  while (at != std::string_view::npos && at > 0 && !is_blank(line[at - 1])) {
    at = line.find('#', at + 1);
  }
  return at;
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find_first_of("\r\n"), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end);
    text.remove_prefix(text.starts_with("\r\n") ? 2 : text.empty() ? 0 : 1);
  }
  return lines;
}

// One file's settings, as its lines are read.
class Settings {
 public:
  explicit Settings(std::string file) : file_(std::move(file)) {
    for (const Option& option : options_) known_.push_back(option.name);
  }

  void read_line(int number, std::string_view whole_line) {
    const std::string place = fmt::format("{}:{}", file_, number);
    const std::string_view line = trim(whole_line.substr(0, comment_in(whole_line)));
    if (line.empty()) return;
    if (line.front() == '[' && line.back() == ']') {
      section_ = section_of(line, place);
      return;
    }
    const std::size_t equals = line.find('=');
    const std::string key(trim(line.substr(0, equals)));
    if (equals == std::string_view::npos || key.empty()) {
      throw UsageError(
          fmt::format("{}: '{}' is no setting; write KEY = VALUE", place, printable(whole_line)));
    }
    const Option& option = option_of(key, place);
    if (!seen_.insert(key).second) {
      throw UsageError(fmt::format("{}: {} is given twice; give it once", place, key));
    }
    if (!section_.empty() && option.group != section_) {
      throw UsageError(fmt::format("{}: {} is no setting of [{}]; move it to [{}]", place, key,
                                   section_, option.group));
    }
    given_.push_back(
        {&option, fmt::format("{}: {}", place, key), std::string(trim(line.substr(equals + 1)))});
  }

  void apply(TrainRequest& request) const {
    for (const auto& [option, place, value] : given_) option->set(request, place, value);
  }

 private:
  struct Given {
    const Option* option;
    std::string place;
    std::string value;
  };

  const Option& option_of(const std::string& key, const std::string& place) const {
    const auto option =
        std::find_if(options_.begin(), options_.end(),
                     [&](const Option& candidate) { return candidate.name == key; });
    if (option != options_.end()) return *option;
    throw UsageError(fmt::format("{}: unknown key '{}'; {}`thinwire train --help` lists all", place,
                                 printable(key), did_you_mean(key, known_)));
  }

  // The group of options that a section's header, "[Communication]", names in letters of any case.
  std::string section_of(std::string_view header, const std::string& place) const {
    std::vector<std::string> groups;
    for (const Option& option : options_) {
      const std::string known = fmt::format("[{}]", option.group);
      if (::strcasecmp(std::string(header).c_str(), known.c_str()) == 0) return option.group;
      if (groups.empty() || groups.back() != option.group) groups.push_back(option.group);
    }
    throw UsageError(fmt::format("{}: no section {}; give one of [{}]", place, printable(header),
                                 fmt::join(groups, "], [")));
  }

  const std::string file_;
  const std::vector<Option> options_ = options_table();
  std::vector<std::string> known_;
  std::vector<Given> given_;
  std::set<std::string> seen_;
  std::string section_;  // empty before the first header: keys of all of them
};

[[noreturn]] void cannot_read(const std::string& file, int error) {
  throw IoError(fmt::format("--config: cannot read '{}': {}; check the path", printable(file),
                            std::generic_category().message(error)));
}

[[noreturn]] void refuse(const std::string& file, const std::string& why) {
  throw UsageError(fmt::format("--config: '{}' {}", printable(file), why));
}

// An open file of settings.
class ConfigSource {
 public:
  ConfigSource(const std::string& file, Clock::time_point deadline)
      : file_(file), deadline_(deadline) {
    struct stat status {};
    if (::stat(file.c_str(), &status) < 0) cannot_read(file, errno);
    require_kind(status);  // to open some devices is to do something with them
    // A pipe that nobody writes to would be waited for without end.
    descriptor_ = ::open(file.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (descriptor_ < 0) cannot_read(file, errno);
  }
  ConfigSource(const ConfigSource&) = delete;
  ConfigSource& operator=(const ConfigSource&) = delete;
  ~ConfigSource() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  std::string read() {
    struct stat status {};
    if (::fstat(descriptor_, &status) < 0) cannot_read(file_, errno);
    require_kind(status);
    is_pipe_ = S_ISFIFO(status.st_mode);
    std::string bytes(kLargestFile + 1, '\0');
    std::size_t used = 0;
    while (const std::size_t count = read_some(bytes.data() + used, bytes.size() - used)) {
      used += count;
      if (used > kLargestFile) refuse(file_, "has more than 1 MiB; give a file of settings");
    }
    if (used == 0 && is_pipe_) {
      refuse(file_, "is a pipe that gave nothing; see what writes to it, or leave out --config");
    }
    bytes.resize(used);
    return bytes;
  }

 private:
  void require_kind(const struct stat& status) const {
    if (S_ISDIR(status.st_mode)) cannot_read(file_, EISDIR);
    if (S_ISREG(status.st_mode) || S_ISFIFO(status.st_mode)) return;
    refuse(file_, "is no file and no pipe; give a file, or `<(command)` in a shell that knows it");
  }

  // Waits for bytes until the deadline; 0 at the end.
  std::size_t read_some(char* to, std::size_t most) const {
    while (true) {
      const ssize_t count = ::read(descriptor_, to, most);
      // The end of a pipe whose writer has not come yet looks like that of one that has left.
      if (count > 0 || (count == 0 && has_ended())) return static_cast<std::size_t>(count);
      if (count < 0 && errno != EINTR && errno != EAGAIN) cannot_read(file_, errno);
      wait();
    }
  }
  bool has_ended() const {
    pollfd state{descriptor_, POLLIN, 0};
    return !is_pipe_ || (::poll(&state, 1, 0) > 0 && (state.revents & POLLIN) == 0);
  }
  void wait() const {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now());
    if (left.count() <= 0) {
      refuse(file_, "is a pipe that did not end in time; see what writes to it");
    }
    pollfd state{descriptor_, POLLIN, 0};
    ::poll(&state, 1, static_cast<int>(left.count()));
  }

  const std::string file_;
  const Clock::time_point deadline_;
  int descriptor_ = -1;
  bool is_pipe_ = false;
};

}  // namespace

void read_config(std::string_view text, const std::string& file, TrainRequest& request) {
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  Settings settings(file);
  int number = 0;
  for (const std::string_view line : lines_of(text)) {
    ++number;
    if (line.find('\0') != std::string_view::npos) {
      throw UsageError(
          fmt::format("{}:{}: has a byte of zero; save the file as UTF-8 text", file, number));
    }
    settings.read_line(number, line);
  }
  settings.apply(request);
}

std::string config_bytes(const std::string& file, std::chrono::milliseconds patience) {
  return ConfigSource(file, Clock::now() + patience).read();
}

std::string config_text(const TrainRequest& request) {
  std::string text = "# thinwire train --config FILE\n";
  std::string group;
  for (const auto& option : options_table()) {
    if (option.group != group) text += fmt::format("\n[{}]\n", option.group);
    group = option.group;
    const std::string value = option.get(request);
    const bool has_comment = comment_in("=" + value) != std::string_view::npos;
    if (trim(value) != value || has_comment ||
        value.find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos) {
      throw UsageError(fmt::format(
          "--{} is '{}', which a config file cannot hold; avoid '#' behind a blank, line ends and "
          "outer blanks",
          option.name, printable(value)));
    }
    const std::string range = option.range();
    // Behind a blank '#' would begin a comment.
    const bool close = value.empty() || value.front() == '#';
    text += fmt::format("# {}{}\n{} ={}{}\n", option.help,
                        range.empty() ? "" : fmt::format(" ({})", range), option.name,
                        close ? "" : " ", value);
  }
  return text;
}

std::map<std::string, std::string> as_map(const TrainRequest& request) {
  std::map<std::string, std::string> map;
  for (const auto& option : options_table()) map[option.name] = option.get(request);
  return map;
}

}  // namespace thinwire
