// What `thinwire advise` can be told beside the options of `thinwire train`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thinwire {

// Which compressors are compared, how often each is measured, and where the results are written.
struct AdviseOptions {
  // Those that lose least come first, because the first one wins among equally fast ones.
  std::string compressors = "none,bf16,sign,powersgd:rank=4";
  std::int64_t repeats = 5;  // steps of each compressor and round; runs of each exchange and size
  std::string json;          // file for the results; empty: none
};

// Takes the flags of `advise`, --FLAG VALUE or --FLAG=VALUE, out of `arguments` and leaves those of
// `thinwire train` in it. Throws `UsageError`.
AdviseOptions take_advise_options(std::vector<std::string>& arguments);

// Splits "none,sign:block=64,scale=rms,bf16" into none, sign:block=64,scale=rms and bf16.
std::vector<std::string> split_compressors(const std::string& list);

std::string advise_help_text();

}  // namespace thinwire
