#include "collectives/base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace thinwire {
namespace {

constexpr std::size_t kLongestLine = 1 << 14;

// A character at the start of some text.
struct Character {
  std::uint32_t code = 0;
  std::size_t bytes = 0;  // 0: what stands there is not UTF-8
};

bool continues(char byte) {
  return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const std::size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < bytes) return {};
  std::uint32_t code = lead & (0x7fU >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if (!continues(text[i])) return {};
    code = code << 6 | (static_cast<unsigned char>(text[i]) & 0x3fU);
  }
  // Longer than needed, half of a surrogate pair, or beyond the last one.
  constexpr std::uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kLeast[bytes] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return {};
  return {code, bytes};
}

// Whether a reader sees the character where it stands, and only there.
bool is_plain(std::uint32_t code) {
  constexpr std::uint32_t kDelete = 0x7f;
  const auto within = [&](std::uint32_t low, std::uint32_t high) {
    return code >= low && code <= high;
  };
  return code >= ' ' && !within(kDelete, 0x9f) &&  // control characters
         code != 0xad && code != 0x61c && code != 0x180e && code != 0xfeff &&
         !within(0x200b, 0x200f) && !within(0x2028, 0x202e) &&  // no width, lines, directions
         !within(0x2060, 0x206f) && !within(0xfff9, 0xfffb) && !within(0xe0000, 0xe0fff);
}

std::string escaped(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) {
    switch (byte) {
      case '\n':
        text += "\\n";
        break;
      case '\r':
        text += "\\r";
        break;
      case '\t':
        text += "\\t";
        break;
      default:
        text += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
    }
  }
  return text;
}

}  // namespace

std::string printable(std::string_view text, std::size_t most) {
  std::string result;
  while (!text.empty() && result.size() < most) {
    const Character character = first_character(text);
    const std::size_t bytes = std::max<std::size_t>(character.bytes, 1);
    const std::string_view taken = text.substr(0, bytes);
    const bool plain = character.bytes > 0 && is_plain(character.code);
    result += plain ? std::string(taken) : escaped(taken);
    text.remove_prefix(bytes);
  }
  if (!text.empty()) result += fmt::format("... ({} bytes more)", text.size());
  return result;
}

std::string printable_lines(std::string_view text) {
  std::string result;
  while (true) {
    const std::size_t end = text.find('\n');
    result += printable(text.substr(0, end), kLongestLine);
    if (end == std::string_view::npos) return result;
    result += '\n';
    text.remove_prefix(end + 1);
  }
}

std::string without_stack(std::string_view message) {
  // What c10 begins a trace with, and its frames' lines, with and without symbols.
  constexpr std::string_view kBegin = "Exception raised from ";
  const auto is_frame = [](std::string_view line) {
    return line.empty() || line.starts_with("frame #") || line.starts_with("#") ||
           line.starts_with("C++ CapturedTraceback:");
  };
  std::string result;
  while (true) {
    const std::size_t begin = message.find(kBegin);
    result += message.substr(0, begin);
    if (begin == std::string_view::npos) return result;
    while (!result.empty() && (result.back() == '\n' || result.back() == ' ')) result.pop_back();
    message.remove_prefix(begin);
    const auto skip_line = [&] {
      const std::size_t end = message.find('\n');
      message.remove_prefix(end == std::string_view::npos ? message.size() : end + 1);
    };
    skip_line();
    while (!message.empty() && is_frame(message.substr(0, message.find('\n')))) skip_line();
  }
}

}  // namespace thinwire
