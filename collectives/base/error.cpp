#include "collectives/base/error.h"

namespace thinwire::detail {

void check_failed(std::string_view what, const std::string& values,
                  const std::source_location& where) {
  std::string message = "bug: ";
  message += what;
  if (!values.empty()) message += " (" + values + ")";
  message += std::string(", at ") + where.file_name() + ":" + std::to_string(where.line());
  throw Bug(message);
}

}  // namespace thinwire::detail
