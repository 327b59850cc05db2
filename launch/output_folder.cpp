#include "launch/output_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <optional>
#include <set>
#include <vector>

#include "collectives/base/error.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/telemetry/metrics.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;

// The checkpoint that the run resumes from, as an entry of `root`; empty if it is not in there.
fs::path entry_resumed_from(const fs::path& root, const Resumption& resumption) {
  if (!resumption.folder) return {};
  fs::path from = *resumption.folder;
  if (from.filename().empty()) from = from.parent_path();  // it ended in a slash
  if (fs::weakly_canonical(from.parent_path()) != fs::weakly_canonical(root)) return {};
  return root / from.filename();
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
    std::error_code error;
    fs::rename(from, folder_ / to, error);
    if (error == std::errc::cross_device_link) {
      // What lies on another disk stays there.
      const fs::path beside = from.parent_path() / folder_.filename();
      fs::create_directories(beside);
      fs::rename(from, beside / from.filename());
    } else if (error) {
      throw fs::filesystem_error("cannot move", from, folder_ / to, error);
    }
    made_ = true;
  }
  // Files, and of links the links: what else stands among them was not written by a run.
  void copy(const fs::path& from, const fs::path& to) {
    const auto kind = fs::symlink_status(from).type();
    if (kind == fs::file_type::directory) {
      for (const auto& entry : fs::directory_iterator(from)) {
        copy(entry.path(), to / entry.path().filename());
      }
    } else if (kind == fs::file_type::symlink) {
      fs::create_directories((folder_ / to).parent_path());
      fs::copy_symlink(from, folder_ / to);
      made_ = true;
    } else if (kind == fs::file_type::regular) {
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
    const fs::path from = entry_resumed_from(root, resumption);
    const bool continued = !from.empty();

    std::set<fs::path> strangers(resumption.strangers.begin(), resumption.strangers.end());
    const bool all_is_ours = continued && options.resume == "auto";
    if (!all_is_ours && fs::is_directory(root)) {
      for (const auto& entry : fs::directory_iterator(root)) {
        const std::string name = entry.path().filename().string();
        const auto step = step_of_folder(name);
        const bool later = step && *step > resumption.step;
        const bool earlier_runs = name.starts_with("earlier-");
        if (later || (!continued && !earlier_runs)) strangers.insert(entry.path());
      }
    }
    strangers.erase(from);
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
