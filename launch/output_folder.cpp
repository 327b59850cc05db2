#include "launch/output_folder.h"

#include <fmt/format.h>

#include <filesystem>
#include <vector>

#include "runtime/base/error.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/trainer/resume.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

bool shares_history(const fs::path& checkpoint, const std::string& resume) {
  if (resume.empty()) return false;
  if (resume == "auto") return true;
  fs::path from = fs::weakly_canonical(resume);
  if (from.filename().empty()) from = from.parent_path();  // it ended in a slash
  if (from.parent_path() != fs::weakly_canonical(checkpoint).parent_path()) return false;
  const auto step = step_of_folder(checkpoint.filename().string());
  const auto from_step = step_of_folder(from.filename().string());
  return step && from_step && *step <= *from_step;
}

[[noreturn]] void cannot_write(const TrainOptions& options, const fs::filesystem_error& error) {
  throw Error(ExitCode::cannot_write,
              fmt::format("cannot prepare the output folder '{}': {}; give another with --output",
                          options.output, error.what()));
}

}  // namespace

void make_output_folder(const TrainOptions& options) {
  try {
    fs::create_directories(options.output);
  } catch (const fs::filesystem_error& error) {
    cannot_write(options, error);
  }
}

std::string set_aside_earlier_runs(const TrainOptions& options) {
  const fs::path folder = options.output;
  try {
    std::vector<fs::path> strangers;
    if (fs::is_directory(checkpoint_root(options))) {
      for (const auto& entry : fs::directory_iterator(checkpoint_root(options))) {
        if (!shares_history(entry.path(), options.resume)) strangers.push_back(entry.path());
      }
    }
    if (strangers.empty()) return {};

    int number = 1;
    while (fs::exists(folder / fmt::format("earlier-{}", number))) ++number;
    const fs::path earlier = folder / fmt::format("earlier-{}", number);
    fs::create_directories(earlier / "checkpoints");
    for (const auto& path : strangers) {
      fs::rename(path, earlier / "checkpoints" / path.filename());
    }
    if (fs::exists(folder / "metrics.jsonl")) {
      fs::copy_file(folder / "metrics.jsonl", earlier / "metrics.jsonl");
    }
    return fmt::format("moved {} checkpoints of an earlier run in {} to {}", strangers.size(),
                       options.output, earlier.string());
  } catch (const fs::filesystem_error& error) {
    cannot_write(options, error);
  }
}

}  // namespace thinwire
