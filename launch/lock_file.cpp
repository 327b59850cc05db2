#include "launch/lock_file.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "collectives/base/text.h"

namespace thinwire {
namespace {

using nlohmann::ordered_json;

constexpr const char* kName = "run.lock";
// What each lock file begins with, so that nobody else's file is taken for one and overwritten.
constexpr std::string_view kHead = R"({"lock":"thinwire",)";
constexpr std::size_t kMostBytes = 4096;

std::string to_text(const LockOwner& owner) {
  const ordered_json object = {{"lock", "thinwire"},       {"host", owner.host},
                               {"boot", owner.boot},       {"process_table", owner.process_table},
                               {"process", owner.process}, {"process_start", owner.process_start},
                               {"since", owner.since},     {"token", owner.token}};
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string random_token() {
  std::random_device source;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", source(), source(), source(), source());
}

}  // namespace

std::string lock_file::path_of(const std::string& folder) {
  return folder + "/" + kName;
}

FileDescriptor lock_file::open(const std::string& path, int flags) {
  return FileDescriptor(uninterrupted([&] {
    return ::open(path.c_str(), flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
  }));
}

lock_file::Content lock_file::read(int descriptor) {
  std::string bytes(kMostBytes + 1, '\0');
  const ssize_t count =
      uninterrupted([&] { return ::pread(descriptor, bytes.data(), bytes.size(), 0); });
  if (count < 0) return {.text = "", .error = errno};
  bytes.resize(static_cast<std::size_t>(count));
  return {.text = std::move(bytes)};
}

std::optional<LockOwner> lock_file::parse(const std::string& text) {
  const auto object = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!text.starts_with(kHead) || !object.is_object()) return std::nullopt;
  const auto word = [&](const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  const auto number = [&](const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
  };
  const LockOwner owner{word("host"),
                        word("boot"),
                        word("process_table"),
                        number("process"),
                        number("process_start"),
                        word("since"),
                        word("token")};
  return owner.token.empty() ? std::nullopt : std::optional(owner);
}

bool lock_file::is_damaged(const std::string& text) {
  const std::size_t common = std::min(text.size(), kHead.size());
  const bool zeros = std::all_of(text.begin(), text.end(), [](char c) { return c == '\0'; });
  return text.size() <= kMostBytes && (zeros || text.substr(0, common) == kHead.substr(0, common));
}

std::string describe(const LockOwner& owner) {
  return fmt::format("process {} on host '{}', since {}", owner.process, printable(owner.host, 64),
                     printable(owner.since, 32));
}

int lock_file::write(int descriptor, const LockOwner& owner) {
  const std::string text = to_text(owner);
  const ssize_t count =
      uninterrupted([&] { return ::pwrite(descriptor, text.data(), text.size(), 0); });
  if (count < 0) return errno;
  if (count != static_cast<ssize_t>(text.size())) return ENOSPC;
  // Other machines see it from here on.
  if (::ftruncate(descriptor, static_cast<off_t>(text.size())) < 0) return errno;
  return uninterrupted([&] { return ::fsync(descriptor); }) < 0 ? errno : 0;
}

std::int64_t start_of_process(const std::string& process) {
  // "PID (NAME) STATE ...", where NAME may hold anything; the start is the 22nd word.
  const std::string line = first_line(fmt::format("/proc/{}/stat", process));
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream rest(line.substr(name_end + 1));
  const std::vector<std::string> words{std::istream_iterator<std::string>(rest), {}};
  return words.size() > 19 ? std::strtoll(words[19].c_str(), nullptr, 10) : 0;
}

LockOwner this_process() {
  LockOwner self;
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  self.host = host.data();
  self.boot = first_line("/proc/sys/kernel/random/boot_id");
  std::error_code error;
  self.process_table = std::filesystem::read_symlink("/proc/self/ns/pid", error).string();
  self.process = ::getpid();
  self.process_start = start_of_process("self");
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  self.since = fmt::format("{:%Y-%m-%d %H:%M:%S} UTC", utc);
  self.token = random_token();
  return self;
}

}  // namespace thinwire
