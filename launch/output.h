// How a command prints, and what happens where its output cannot be written.
#pragma once

#include <string>

namespace thinwire {

// Opens those of the descriptors 0, 1 and 2 that the parent closed (`>&-`), in such a way that
// writing to them fails. Otherwise the next file or connection would get the number of stdout, and
// what is printed would go into it. Call it before anything else is opened.
void occupy_standard_descriptors();

// Prints to stdout, for commands whose output is their result. A failure is remembered and not
// thrown, because a rank that threw would leave the others waiting.
void print(const std::string& text);
// To be called at a command's end: throws `Error` (exit 73) unless everything that was printed has
// been written.
void require_printed();

// Standard output of a run. It is not the run's result, so nothing that happens to it ends the run.
class RunOutput {
 public:
  // When a text cannot be written for the first time, a warning goes to stderr; later texts are
  // tried all the same. Never throws. One thread at a time.
  void write(const std::string& text);

 private:
  bool said_ = false;
};

}  // namespace thinwire
