// Text that comes from outside (a file, a peer, an argument), fit to be shown to somebody.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace thinwire {

// `text` as one line that changes nothing on a terminal and hides nothing: control characters,
// characters that are invisible or turn the direction, and what is not UTF-8 become "\n", "\t",
// "\r" or "\x1b" byte by byte. After about `most` bytes of the result a character is the last, and
// "... (N bytes more)" follows. What it returns it returns unchanged, unless it has to cut.
std::string printable(std::string_view text, std::size_t most = 200);

// The same for a whole message, whose line ends stay; a line is cut after 16 KiB.
std::string printable_lines(std::string_view text);

// A message without the stack traces that libtorch puts into its own.
std::string without_stack(std::string_view message);

}  // namespace thinwire
