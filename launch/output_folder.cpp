#include "launch/output_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <optional>
#include <set>
#include <vector>

#include "runtime/base/error.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/telemetry/metrics.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

// The step of the checkpoint in `root` that the run resumes from; none if it is not in there.
std::optional<std::int64_t> resumed_step(const fs::path& root, const TrainOptions& options,
                                         const Resumption& resumption) {
  if (!resumption.folder) return std::nullopt;
  fs::path from = *resumption.folder;
  if (options.resume != "auto") {
    from = fs::weakly_canonical(from);
    if (from.filename().empty()) from = from.parent_path();  // it ended in a slash
    if (from.parent_path() != fs::weakly_canonical(root)) return std::nullopt;
  }
  return step_of_folder(from.filename().string());
}

[[noreturn]] void cannot_write(const std::string& folder, const std::string& error) {
  throw Error(ExitCode::cannot_write,
              fmt::format("cannot prepare the output folder '{}': {}; give another with --output",
                          folder, error));
}

bool is_there(const fs::path& path) {
  return fs::symlink_status(path).type() != fs::file_type::not_found;
}

// "earlier-N" in the output folder, made when something goes there.
class Earlier {
 public:
  explicit Earlier(const fs::path& output) {
    int number = 1;
    while (is_there(output / fmt::format("earlier-{}", number))) ++number;
    folder_ = output / fmt::format("earlier-{}", number);
  }

  // Of a link the link itself.
  void take(const fs::path& from, const fs::path& to) {
    fs::create_directories((folder_ / to).parent_path());
    fs::rename(from, folder_ / to);
    made_ = true;
  }
  // Files only: what else stands among them was not written by a run.
  void copy(const fs::path& from, const fs::path& to) {
    if (fs::is_directory(from)) {
      for (const auto& entry : fs::directory_iterator(from)) {
        copy(entry.path(), to / entry.path().filename());
      }
    } else if (fs::is_regular_file(from)) {
      fs::create_directories((folder_ / to).parent_path());
      std::error_code error;
      // Without a second copy on the disk where that can be had.
      fs::create_hard_link(from, folder_ / to, error);
      if (error) fs::copy_file(from, folder_ / to);
      made_ = true;
    }
  }

  bool made() const { return made_; }
  std::string name() const { return folder_.string(); }

 private:
  fs::path folder_;
  bool made_ = false;
};

}  // namespace

void make_output_folder(const std::string& folder) {
  try {
    fs::create_directories(folder);
  } catch (const fs::filesystem_error& error) {
    cannot_write(folder, error.what());
  }
}

OutputHistory set_aside_earlier_runs(const TrainOptions& options, const Resumption& resumption) {
  const fs::path folder = options.output;
  const fs::path root = checkpoint_root(options);
  try {
    if (is_there(root) && !fs::is_directory(root)) {
      cannot_write(options.output,
                   fmt::format("'{}' is no folder, but checkpoints go there", root.string()));
    }
    const auto from = resumed_step(root, options, resumption);
    const bool continued = from.has_value();

    std::set<fs::path> strangers(resumption.strangers.begin(), resumption.strangers.end());
    const bool all_is_ours = continued && options.resume == "auto";
    if (!all_is_ours && fs::is_directory(root)) {
      for (const auto& entry : fs::directory_iterator(root)) {
        const auto step = step_of_folder(entry.path().filename().string());
        if (!from || !step || *step > *from) strangers.insert(entry.path());
      }
    }
    const fs::path metrics = folder / "metrics.jsonl";
    const bool has_metrics =
        is_there(metrics) && !(fs::is_regular_file(metrics) && fs::file_size(metrics) == 0);
    const bool pure_metrics = has_metrics && holds_only_metrics(metrics.string());

    Earlier earlier(folder);
    for (const auto& path : strangers)
      earlier.take(path, fs::path("checkpoints") / path.filename());
    std::vector<std::string> moved;
    if (!strangers.empty()) moved.push_back(fmt::format("{} checkpoints", strangers.size()));
    if (has_metrics && (!continued || !fs::is_regular_file(metrics))) {
      earlier.take(metrics, metrics.filename());
      moved.emplace_back("metrics.jsonl");
    } else if (has_metrics && (earlier.made() || !pure_metrics)) {
      earlier.copy(metrics, metrics.filename());
      if (!pure_metrics) moved.emplace_back("metrics.jsonl, which holds something else");
    }
    // Of a history that goes on, the new events take the place of what is abandoned here.
    const fs::path events = folder / "tensorboard";
    if (earlier.made() && fs::is_directory(events)) {
      if (continued) {
        earlier.copy(events, events.filename());
      } else {
        earlier.take(events, events.filename());
      }
    }
    const fs::path flight = folder / "flight";
    if (earlier.made() && !continued && is_there(flight)) earlier.take(flight, flight.filename());
    if (!earlier.made()) return {.moved = "", .continued = continued};
    return {.moved = fmt::format("moved what an earlier run left in {} to {}: {}", options.output,
                                 earlier.name(), fmt::join(moved, ", ")),
            .continued = continued};
  } catch (const fs::filesystem_error& error) {
    cannot_write(options.output, error.what());
  }
}

}  // namespace thinwire
