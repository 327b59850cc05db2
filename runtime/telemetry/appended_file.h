// A file that a run appends to while others may do with it what they like.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "collectives/base/file_descriptor.h"

namespace thinwire {

// Where the file or its folder was removed or replaced since the last record, a file is made anew;
// where it was emptied, it grows from there: either is said once. What cannot be written costs a
// warning, once until it can be written again, and the records of that time; never the run. What
// stands at the path and is no plain file is left as it is, and waits for nobody to read it.
class AppendedFile {
 public:
  // `kind` and `loss` are what the warnings call its contents, "metrics", and what is missing of
  // them, "numbers are missing". `before_anew` is asked before a file that was removed or replaced
  // is made anew, and throws where its place is no longer this run's.
  AppendedFile(std::string kind, std::string loss, std::function<void()> before_anew)
      : kind_(std::move(kind)), loss_(std::move(loss)), before_anew_(std::move(before_anew)) {}

  // A file at `path`, where there is none.
  void create(const std::string& path);
  // Puts a file with these bytes in the place of what is at `path`, which keeps its own bytes where
  // it has another name or is open elsewhere. Where that fails nothing is appended to what is
  // there: each record tries again first.
  void replace(const std::string& path, std::string_view bytes);
  // `head`: what a file begins with.
  void append(std::string_view record, const std::function<std::string()>& head);

  // Empty, or what happened; becomes empty once it was read.
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
  std::optional<std::string> instead_;  // what is to be at the path and is not yet
  std::int64_t size_ = 0;               // after the last record
  std::string warning_;
  bool started_ = false;  // there was a file to append to
  bool failed_ = false;
};

}  // namespace thinwire
