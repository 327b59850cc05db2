// Where a command prints, and what becomes of it where that cannot be written.
#pragma once

#include <string>

namespace thinwire {

// Descriptors 0, 1 and 2 that the parent closed (`>&-`) are opened so that writing to them fails:
// otherwise the next file or connection would get the number, and what is printed would go there.
// Call it before anything is opened.
void occupy_standard_descriptors();

// To stdout, of commands whose output is their result. Remembers a failure and does not throw it,
// so that one rank does not leave the others for it.
void print(const std::string& text);
// At a command's end: throws `Error` (exit 73) unless all that was printed is written.
void require_printed();

// Standard output of a run, which is not its result: nothing that happens to it ends the run.
class RunOutput {
 public:
  // The first text that cannot be written is followed by a warning on stderr; later ones are tried
  // again. Never throws. One thread at a time.
  void write(const std::string& text);

 private:
  bool said_ = false;
};

}  // namespace thinwire
