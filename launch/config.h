// Config files: lines "key = value" with the long flag names as keys.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <string_view>

#include "launch/options_table.h"

namespace thinwire {

// Lays a config file of `text` over `request`. Lines end with CR, LF or both; '#' at the start of a
// line or behind a blank begins a comment; "[Group]" begins the keys of that group. `file` names
// the file for messages. Throws `UsageError` with "file:line: key", the value and what is allowed.
void read_config(std::string_view text, const std::string& file, TrainRequest& request);

// The text of a config file or of a pipe whose writer ends within `patience`. Throws `UsageError`
// for anything else, for more than 1 MiB, and for a pipe that gave nothing; `IoError` if it cannot
// be read.
std::string config_bytes(const std::string& file,
                         std::chrono::milliseconds patience = std::chrono::seconds(10));

// The config file that `read_config` turns into `request` again. Throws `UsageError` if a value
// cannot be written in such a file (a blank before '#' in it, line ends, blanks at an end).
std::string config_text(const TrainRequest& request);

// Every option by its flag name without dashes, as `config_text` writes it: what ranks compare.
std::map<std::string, std::string> as_map(const TrainRequest& request);

}  // namespace thinwire
