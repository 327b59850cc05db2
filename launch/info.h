// What this program is made of.
#pragma once

#include <string>

namespace thinwire {

// A line each: version, compiler, libtorch, and the backends with the reason for those that are
// off.
std::string info_text();

}  // namespace thinwire
