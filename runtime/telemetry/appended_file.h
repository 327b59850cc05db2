// A file that a run appends to, while others may remove, replace or empty it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "collectives/base/file_descriptor.h"

namespace thinwire {

// Where the file or its folder was removed or replaced since the last record, the file is made
// anew. Where it was emptied, new records follow from its start. Either gives one warning. Where a
// record cannot be written it is lost, and there is one warning until writing works again; the run
// goes on. Something at the path that is no plain file (a pipe, a device) is left as it is and not
// waited for.
class AppendedFile {
 public:
  // `kind` is what warnings call the contents ("metrics"), and `loss` what they say of lost records
  // ("numbers are missing"). `before_anew` is called before a file that was removed or replaced is
  // made anew, and throws where the folder no longer belongs to this run.
  AppendedFile(std::string kind, std::string loss, std::function<void()> before_anew)
      : kind_(std::move(kind)), loss_(std::move(loss)), before_anew_(std::move(before_anew)) {}

  // Makes a file at `path`, where there is none.
  void create(const std::string& path);
  // Puts a new file with these bytes in the place of the one at `path`. The old file is not written
  // to, because it may have another name or be open elsewhere. Where this fails nothing is appended
  // to the old file either: each record first tries again to replace it.
  void replace(const std::string& path, std::string_view bytes);
  // `head` makes what a new file begins with.
  void append(std::string_view record, const std::function<std::string()>& head);

  // The warning for what happened, or empty. It becomes empty once it was read.
  std::string take_warning();

 private:
  bool put_in_place();
  bool is_in_place();
  bool make_anew();
  bool say_failed(int error);
  bool write(std::string_view bytes);
  void warn(const std::string& text);

  std::string kind_;
  std::string loss_;
  std::function<void()> before_anew_;
  std::string path_;
  FileDescriptor file_;
  std::optional<std::string> instead_;  // bytes that `replace` has not brought to the path yet
  std::int64_t size_ = 0;               // after the last record
  std::string warning_;
  bool started_ = false;  // there was a file to append to
  bool failed_ = false;
};

}  // namespace thinwire
