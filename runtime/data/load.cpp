#include "runtime/data/load.h"

#include <filesystem>
#include <limits>
#include <string>
#include <string_view>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/memory.h"
#include "runtime/data/idx.h"
#include "runtime/data/synthetic.h"
#include "runtime/data/text.h"

namespace thinwire {
namespace {

DataSplit load_synthetic(ChoiceReader spec) {
  SyntheticOptions options;
  options.samples = spec.integer("samples", options.samples, 1, 10'000'000);
  options.test_samples = spec.integer("test_samples", options.test_samples, 1, 10'000'000);
  options.classes = spec.integer("classes", options.classes, 2, 256);
  options.channels = spec.integer("channels", options.channels, 1, 1024);
  options.size = spec.integer("size", options.size, 1, 1024);
  options.noise = spec.number("noise", options.noise, 0, 1000);
  options.seed =
      static_cast<std::uint64_t>(spec.integer("seed", static_cast<std::int64_t>(options.seed), 0,
                                              std::numeric_limits<std::int64_t>::max()));
  spec.done();
  require_memory("--data synthetic", static_cast<double>(options.samples + options.test_samples) *
                                         static_cast<double>(options.channels) *
                                         static_cast<double>(options.size * options.size));
  return make_synthetic(options);
}

// Whether `text` begins like an option, "word=".
bool is_option(std::string_view text) {
  const std::size_t end = text.find_first_not_of("abcdefghijklmnopqrstuvwxyz_");
  return end != 0 && end != std::string_view::npos && text[end] == '=';
}

// `rest` is what follows "text": "", ":PATH", ":PATH,key=value", ":key=value" or ",key=value".
DataSplit load_text_spec(std::string_view rest) {
  constexpr std::int64_t kLongestContext = 1 << 20;
  rest.remove_prefix(rest.empty() ? 0 : 1);
  // A path may hold commas; the options begin with the first part that looks like one.
  std::size_t options = is_option(rest) ? 0 : rest.find(',');
  while (options != 0 && options != std::string_view::npos &&
         !is_option(rest.substr(options + 1))) {
    options = rest.find(',', options + 1);
  }
  const std::string_view path = rest.substr(0, options);
  std::string items;
  if (options != std::string_view::npos) items = rest.substr(options == 0 ? 0 : options + 1);
  ChoiceReader spec("--data", items.empty() ? "text" : "text:" + items);
  const std::int64_t context = spec.integer("context", 128, 2, kLongestContext);
  spec.done();
  return load_text(path.empty() ? default_text() : std::filesystem::path(path), context);
}

}  // namespace

DataSplit load_data(const std::string& spec) {
  // Not a ChoiceReader: what follows the colon is a path, which may hold any character.
  constexpr std::string_view kFashion = "fashion-mnist";
  if (spec == kFashion) return load_fashion_mnist("/usr/share/datasets/fashion-mnist");
  if (spec.starts_with(kFashion) && spec[kFashion.size()] == ':') {
    const std::string folder = spec.substr(kFashion.size() + 1);
    if (folder.empty()) {
      throw UsageError("--data 'fashion-mnist:' lacks a folder; write fashion-mnist:PATH");
    }
    return load_fashion_mnist(folder);
  }
  const std::string word = spec.substr(0, spec.find_first_of(":,"));
  if (word == "text") return load_text_spec(std::string_view(spec).substr(word.size()));
  if (spec.substr(0, spec.find(':')) == "synthetic")
    return load_synthetic(ChoiceReader("--data", spec));
  ChoiceReader("--data", spec.substr(0, spec.find(':')))
      .unknown_name({"fashion-mnist", "synthetic", "text"});
}

}  // namespace thinwire
