#include "launch/output_folder.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>
#include <vector>

#include "runtime/base/error.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/trainer/resume.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

// The step of the checkpoint in `root` that the run resumes from; none if it is not in there.
std::optional<std::int64_t> resumed_step(const fs::path& root, const std::string& resume) {
  if (resume.empty()) return std::nullopt;
  fs::path from = fs::weakly_canonical(resume);
  if (from.filename().empty()) from = from.parent_path();  // it ended in a slash
  if (from.parent_path() != fs::weakly_canonical(root)) return std::nullopt;
  return step_of_folder(from.filename().string());
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

OutputHistory set_aside_earlier_runs(const TrainOptions& options) {
  const fs::path folder = options.output;
  const fs::path root = checkpoint_root(options);
  try {
    if (options.resume == "auto") return {.moved = "", .continued = true};
    const auto from = resumed_step(root, options.resume);
    OutputHistory history{.moved = "", .continued = from.has_value()};

    std::vector<fs::path> strangers;
    if (fs::is_directory(root)) {
      for (const auto& entry : fs::directory_iterator(root)) {
        const auto step = step_of_folder(entry.path().filename().string());
        if (!from || !step || *step > *from) strangers.push_back(entry.path());
      }
    }
    const fs::path metrics = folder / "metrics.jsonl";
    const bool has_metrics = fs::exists(metrics) && fs::file_size(metrics) > 0;
    if (strangers.empty() && (history.continued || !has_metrics)) return history;

    int number = 1;
    while (fs::exists(folder / fmt::format("earlier-{}", number))) ++number;
    const fs::path earlier = folder / fmt::format("earlier-{}", number);
    fs::create_directories(earlier / "checkpoints");
    for (const auto& path : strangers) {
      fs::rename(path, earlier / "checkpoints" / path.filename());
    }
    if (has_metrics) fs::copy_file(metrics, earlier / "metrics.jsonl");
    // Of a history that goes on, the new events take the place of what is abandoned here.
    const fs::path events = folder / "tensorboard";
    if (fs::is_directory(events)) {
      fs::copy(events, earlier / "tensorboard", fs::copy_options::recursive);
      if (!history.continued) fs::remove_all(events);
    }
    history.moved = fmt::format("moved what an earlier run left in {} to {}: {} checkpoints",
                                options.output, earlier.string(), strangers.size());
    return history;
  } catch (const fs::filesystem_error& error) {
    cannot_write(options, error);
  }
}

}  // namespace thinwire
