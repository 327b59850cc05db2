// Runs a fuzz target on mutations of a corpus, for a while. Written for compilers without
// libFuzzer; the targets have libFuzzer's interface and can be linked with -fsanitize=fuzzer
// instead.
//
//   TARGET CORPUS [--seconds N] [--seed S] [--verbose]
//
// Input i is a function of the corpus, the seed and i: after a crash, run again with --verbose, and
// the last number is the input's. Every input of the corpus is run first as it is.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/philox.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace thinwire {
namespace {

using Input = std::vector<std::uint8_t>;

constexpr std::size_t kLargestInput = 4096;

std::vector<Input> load_corpus(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Input> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (corpus.empty()) throw UsageError(folder + " has no inputs; give the folder of a corpus");
  return corpus;
}

// Draws for one input.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint64_t input)
      : philox_(seed, PhiloxStream::synthetic_data, input) {}
  std::size_t below(std::size_t bound) { return philox_.below(next_++, bound); }
  std::uint64_t bits() { return philox_.bits(next_++); }

 private:
  Philox philox_;
  std::uint64_t next_ = 0;
};

// Floats and counts that code might not expect, little-endian.
constexpr std::uint64_t kInteresting[] = {0,
                                          1,
                                          0x80000000,
                                          0xffffffff,
                                          0x7f800000,
                                          0xff800000,
                                          0x7fc00000,
                                          0x00800000,
                                          0x007fffff,
                                          0x7f7fffff,
                                          0x3f800000,
                                          0x7fffffff,
                                          0x7c007c00,
                                          0x7f807f80,
                                          0xffff,
                                          0x7ff0000000000000,
                                          0x7ff8000000000000,
                                          0x7fefffffffffffff,
                                          0x8000,
                                          0x0010000000000000};

void mutate_once(Input& input, const std::vector<Input>& corpus, Draws& draws) {
  switch (draws.below(7)) {
    case 0:  // flip a bit
      if (input.empty()) return;
      input[draws.below(input.size())] ^= static_cast<std::uint8_t>(1u << draws.below(8));
      return;
    case 1:  // another byte
      if (input.empty()) return;
      input[draws.below(input.size())] = static_cast<std::uint8_t>(draws.bits());
      return;
    case 2: {  // an interesting word
      const std::uint64_t word = kInteresting[draws.below(std::size(kInteresting))];
      const std::size_t width = std::size_t{1} << draws.below(4);
      if (input.size() < width) return;
      const std::size_t at = draws.below(input.size() - width + 1);
      for (std::size_t k = 0; k < width; ++k) {
        input[at + k] = static_cast<std::uint8_t>(word >> (8 * k));
      }
      return;
    }
    case 3:  // shorter
      input.resize(draws.below(input.size() + 1));
      return;
    case 4: {  // longer, at random
      const std::size_t more = draws.below(64);
      for (std::size_t k = 0; k < more; ++k) {
        input.push_back(static_cast<std::uint8_t>(draws.bits()));
      }
      return;
    }
    case 5: {  // a run of one byte
      if (input.empty()) return;
      const std::size_t begin = draws.below(input.size());
      const std::size_t end = begin + draws.below(input.size() - begin) + 1;
      std::fill(input.begin() + static_cast<std::ptrdiff_t>(begin),
                input.begin() + static_cast<std::ptrdiff_t>(end),
                static_cast<std::uint8_t>(draws.bits()));
      return;
    }
    default: {  // the start of this one, the end of another
      const Input& other = corpus[draws.below(corpus.size())];
      const std::size_t keep = draws.below(input.size() + 1);
      input.resize(keep);
      if (other.size() > keep) {
        input.insert(input.end(), other.begin() + static_cast<std::ptrdiff_t>(keep), other.end());
      }
    }
  }
}

Input input_at(std::uint64_t number, const std::vector<Input>& corpus, std::uint64_t seed) {
  if (number < corpus.size()) return corpus[number];
  Draws draws(seed, number);
  Input input = corpus[draws.below(corpus.size())];
  const std::size_t mutations = 1 + draws.below(8);
  for (std::size_t i = 0; i < mutations; ++i) mutate_once(input, corpus, draws);
  input.resize(std::min(input.size(), kLargestInput));
  return input;
}

struct Options {
  std::string corpus;
  std::chrono::seconds time{20};
  std::uint64_t seed = 1;
  bool verbose = false;
};

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto number = [&] {
      if (++i == words.size()) throw UsageError(words[i - 1] + " lacks a value; give a number");
      return parse_integer(words[i - 1], words[i], 0, 1000000000);
    };
    if (words[i] == "--seconds") {
      options.time = std::chrono::seconds(number());
    } else if (words[i] == "--seed") {
      options.seed = static_cast<std::uint64_t>(number());
    } else if (words[i] == "--verbose") {
      options.verbose = true;
    } else {
      options.corpus = words[i];
    }
  }
  if (options.corpus.empty()) throw UsageError("no corpus; give its folder");
  return options;
}

void run(const Options& options) {
  const auto corpus = load_corpus(options.corpus);
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t number = 0;
  while (std::chrono::steady_clock::now() - begin < options.time || number < corpus.size()) {
    if (options.verbose) {
      fmt::print("{}\n", number);
      std::fflush(stdout);
    }
    const Input input = input_at(number, corpus, options.seed);
    try {
      LLVMFuzzerTestOneInput(input.data(), input.size());
    } catch (const std::exception& error) {
      throw Bug(fmt::format("input {} of seed {}: {}", number, options.seed, error.what()));
    }
    ++number;
  }
  fmt::print("{} inputs in {} s, seed {}\n", number, options.time.count(), options.seed);
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  try {
    thinwire::run(thinwire::parse({argv + 1, argv + argc}));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
