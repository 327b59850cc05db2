#include "runtime/data/load.h"

#include <limits>
#include <string_view>

#include "runtime/base/error.h"
#include "runtime/base/spec.h"
#include "runtime/data/idx.h"
#include "runtime/data/synthetic.h"

namespace thinwire {
namespace {

DataSplit load_synthetic(Spec spec) {
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
  return make_synthetic(options);
}

}  // namespace

DataSplit load_data(const std::string& spec) {
  // Not a Spec: what follows the colon is a path, which may hold any character.
  constexpr std::string_view kFashion = "fashion-mnist";
  if (spec == kFashion) return load_fashion_mnist("/usr/share/datasets/fashion-mnist");
  if (spec.starts_with(kFashion) && spec[kFashion.size()] == ':') {
    const std::string folder = spec.substr(kFashion.size() + 1);
    if (folder.empty()) {
      throw UsageError("--data 'fashion-mnist:' lacks a folder; write fashion-mnist:PATH");
    }
    return load_fashion_mnist(folder);
  }
  if (spec.substr(0, spec.find(':')) == "synthetic") return load_synthetic(Spec("--data", spec));
  Spec("--data", spec.substr(0, spec.find(':'))).unknown_name({"fashion-mnist", "synthetic"});
}

}  // namespace thinwire
