#include "runtime/checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/text.h"
#include "runtime/checkpoint/safetensors.h"

namespace thinwire {
namespace {

using nlohmann::json;

// Why something was not done; `text` is empty if it was.
struct Failure {
  std::string text;
  bool lacks_space = false;
  bool happened() const { return !text.empty(); }
};

// What `action` threw, in one line.
Failure failure_of(const std::function<void()>& action) {
  try {
    action();
    return {};
  } catch (const std::exception& error) {
    // libtorch's errors carry a stack trace after the first line.
    const std::string text = error.what();
    return {text.empty() ? "unknown error" : text.substr(0, text.find('\n')),
            dynamic_cast<const NoSpaceError*>(&error) != nullptr};
  }
}

std::string to_text(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

// The steps that have a folder below `root`, newest first.
std::vector<std::int64_t> steps_below(FileSystem& files, const std::string& root) {
  std::vector<std::int64_t> steps;
  for (const auto& name : files.list_directory(root)) {
    if (const auto step = step_of_folder(name)) steps.push_back(*step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

bool has_manifest(FileSystem& files, const std::string& folder) {
  return files.exists(fmt::format("{}/{}", folder, manifest_name));
}

void remove_checkpoint(FileSystem& files, const std::string& root, const std::string& folder) {
  if (files.is_link(folder)) {
    // What it leads to is not of this run.
    files.remove(folder);
    files.sync_directory(root);
    return;
  }
  // Without its manifest the rest is no checkpoint any more, however far the removal comes.
  if (has_manifest(files, folder)) {
    files.remove(fmt::format("{}/{}", folder, manifest_name));
    files.sync_directory(folder);
  }
  for (const auto& name : files.list_directory(folder)) files.remove(folder + "/" + name);
  files.remove(folder);
  files.sync_directory(root);
}

// Why a complete checkpoint is not one of the run that saves; empty if it is.
std::string of_another_run(const Manifest& manifest, std::int64_t step,
                           const SaveRequest& request) {
  if (manifest.step != step) return fmt::format("of step {}", manifest.step);
  for (const std::string& key : request.identity) {
    const auto before = manifest.info.find(key);
    const auto now = request.info.find(key);
    if (before == manifest.info.end() || now == request.info.end()) continue;
    if (before->second != now->second) {
      return fmt::format("with {} {}, this run has {}", key, printable(before->second),
                         printable(now->second));
    }
  }
  return {};
}

enum class Owner { this_run, another, unknown };

// Whose the checkpoint in the folder is, which has a manifest; unknown where that is damaged.
Owner owner_of(FileSystem& files, const std::string& folder, std::int64_t step,
               const SaveRequest& request) {
  try {
    const bool ours = of_another_run(read_manifest(files, folder), step, request).empty();
    return ours ? Owner::this_run : Owner::another;
  } catch (const DataError&) {
    return Owner::unknown;
  }
}

void remove_older(FileSystem& files, const SaveRequest& request) {
  int complete = 0;
  for (const std::int64_t step : steps_below(files, request.root)) {
    if (step > request.step) continue;
    const std::string folder = checkpoint_folder(request.root, step);
    if (has_manifest(files, folder)) {
      const Owner owner =
          step == request.step ? Owner::this_run : owner_of(files, folder, step, request);
      if (owner == Owner::another) continue;
      // What is damaged is none of those to keep, and stays until there are enough of them.
      if (complete < request.keep) {
        if (owner == Owner::this_run) ++complete;
        continue;
      }
    }
    remove_checkpoint(files, request.root, folder);
  }
}

// Why a checkpoint in the folder of `step` is a stranger; empty if it is none.
std::string strangeness(const Manifest& manifest, std::int64_t step, const Objection& objection) {
  if (manifest.step != step) {
    return fmt::format("is a link or a copy under another name, of step {}", manifest.step);
  }
  return objection ? objection(manifest) : std::string();
}

// One rank's part of a checkpoint.
class RankWriter {
 public:
  RankWriter(FileSystem& files, std::string folder) : files_(files), folder_(std::move(folder)) {}

  void write(int rank, const StateCollector& model, const StateCollector& other) {
    if (rank == 0) {
      // By plain names whatever their kind, so that the file is the whole model to any reader.
      std::vector<NamedTensor> tensors;
      for (const auto& entry : model.entries()) {
        if (entry.kind != StateKind::ranged) tensors.push_back({entry.name, entry.tensor});
      }
      write_file(std::string(model_file_name), write_safetensors(tensors, {}));
      std::vector<StateEntry> replicated;
      for (const auto& entry : other.entries()) {
        if (entry.kind == StateKind::replicated) replicated.push_back(entry);
      }
      write_file(std::string(optimizer_file_name), write_state(replicated));
    }
    std::vector<StateEntry> own;
    for (const auto* state : {&model, &other}) {
      for (const auto& entry : state->entries()) {
        if (entry.kind != StateKind::replicated) own.push_back(entry);
      }
    }
    write_file(rank_file_name(rank), write_state(own));
  }

  // [[name, size, hash], ...]
  const json& written() const { return written_; }

 private:
  void write_file(const std::string& name, const std::string& bytes) {
    write_durably(files_, folder_, name, bytes);
    written_.push_back({name, bytes.size(), hash128_hex(bytes.data(), bytes.size())});
  }

  FileSystem& files_;
  std::string folder_;
  json written_ = json::array();
};

// Rank 0's part: the folder before, the manifest after.
class Coordinator {
 public:
  Coordinator(FileSystem& files, const SaveRequest& request)
      : files_(files), request_(request), folder_(checkpoint_folder(request.root, request.step)) {}

  // Complete at once if a complete checkpoint of this step is there, of this run.
  SaveResult open() {
    bool kept = false;
    const Failure failure = failure_of([&] {
      files_.make_directories(request_.root);
      if (files_.exists(folder_) || files_.is_link(folder_)) {
        kept = is_complete();
        if (kept) return;
        remove_checkpoint(files_, request_.root, folder_);
      }
      files_.make_directories(folder_);
    });
    // Nothing is removed here: what could not be read may be whole.
    if (failure.happened()) return not_saved(failure, 0);
    return {.complete = kept, .folder = folder_, .warning = ""};
  }

  SaveResult close(const std::vector<std::string>& reports,
                   std::map<std::string, std::int64_t> counters) {
    Manifest manifest{
        request_.step, static_cast<int>(reports.size()), std::move(counters), request_.info, {}};
    for (std::size_t rank = 0; rank < reports.size(); ++rank) {
      const json report = json::parse(reports[rank]);
      const Failure failure{report.at("failure"), report.at("lacks_space")};
      if (failure.happened()) return give_up(failure, rank);
      for (const auto& file : report.at("written")) {
        manifest.files.push_back({file[0], file[1], file[2]});
      }
    }
    const Failure failure = failure_of([&] { write(manifest); });
    if (failure.happened()) return give_up(failure, 0);

    const std::string untidy = failure_of([&] { remove_older(files_, request_); }).text;
    return {.complete = true,
            .folder = folder_,
            .warning = untidy.empty() ? "" : "an older checkpoint could not be removed: " + untidy};
  }

 private:
  // Throws `IoError` where the folder holds another run's checkpoint, whether it is whole or not.
  bool is_complete() {
    try {
      const std::string other =
          of_another_run(read_manifest(files_, folder_), request_.step, request_);
      if (!other.empty()) {
        throw IoError(
            fmt::format("{} holds another run's checkpoint, {}; move it away", folder_, other));
      }
      verify_checkpoint(files_, folder_);
      return true;
    } catch (const DataError&) {
      return false;
    }
  }

  void write(const Manifest& manifest) {
    for (const auto& file : manifest.files) {
      if (!files_.exists(folder_ + "/" + file.name)) {
        throw IoError(fmt::format(
            "{}/{}, which another rank wrote, is not there; give a folder that all machines share",
            folder_, file.name));
      }
    }
    write_durably(files_, folder_, std::string(manifest_name), write_manifest(manifest));
    files_.sync_directory(request_.root);
  }

  SaveResult give_up(const Failure& failure, std::size_t rank) {
    // Best effort: what stays has no manifest, and the next save removes it.
    failure_of([&] {
      if (files_.exists(folder_)) remove_checkpoint(files_, request_.root, folder_);
    });
    return not_saved(failure, rank);
  }

  SaveResult not_saved(const Failure& failure, std::size_t rank) const {
    return {.complete = false,
            .folder = folder_,
            .warning = fmt::format("the checkpoint of step {} was not saved: rank {}: {}",
                                   request_.step, rank, failure.text),
            .lacks_space = failure.lacks_space};
  }

  FileSystem& files_;
  const SaveRequest& request_;
  std::string folder_;
};

// Rank 0's result, on every rank.
SaveResult share(Communicator& communicator, const SaveResult& result) {
  const json shared = json::parse(broadcast_text(
      communicator, to_text({result.complete, result.folder, result.warning, result.lacks_space}),
      0));
  return {shared[0], shared[1], shared[2], shared[3]};
}

}  // namespace

SaveResult save_checkpoint(FileSystem& files, Communicator& communicator,
                           const SaveRequest& request, const StateCollector& model,
                           const StateCollector& other) {
  check(request.step >= 0 && request.keep >= 1, "a step >= 0 and at least one checkpoint to keep");
  auto counters = other.counters();
  counters.insert(model.counters().begin(), model.counters().end());
  check_equal(counters.size(), model.counters().size() + other.counters().size(),
              "model and other state have different counters");

  const bool coordinates = communicator.rank() == 0;
  Coordinator coordinator(files, request);
  const SaveResult opened = share(communicator, coordinates ? coordinator.open() : SaveResult{});
  if (opened.complete || !opened.warning.empty()) return opened;

  RankWriter writer(files, checkpoint_folder(request.root, request.step));
  const Failure failure = failure_of([&] { writer.write(communicator.rank(), model, other); });
  const std::vector<std::string> reports =
      all_gather_text(communicator, to_text({{"failure", failure.text},
                                             {"lacks_space", failure.lacks_space},
                                             {"written", writer.written()}}));
  return share(communicator,
               coordinates ? coordinator.close(reports, std::move(counters)) : SaveResult{});
}

Manifest verify_checkpoint(FileSystem& files, const std::string& folder) {
  Manifest manifest = read_manifest(files, folder);
  // A right checksum is not all: what cannot be loaded is found here, and not on some rank later.
  for (const auto& file : manifest.files) {
    read_state(read_listed_file(files, folder, file), fmt::format("{}/{}", folder, file.name));
  }
  return manifest;
}

LatestCheckpoint find_latest_checkpoint(FileSystem& files, const std::string& root,
                                        const Objection& objection) {
  LatestCheckpoint latest;
  if (!files.exists(root)) return latest;
  for (const std::int64_t step : steps_below(files, root)) {
    const std::string folder = checkpoint_folder(root, step);
    try {
      const std::string why = strangeness(read_manifest(files, folder), step, objection);
      if (why.empty()) {
        latest.found = {folder, verify_checkpoint(files, folder)};
        return latest;
      }
      latest.rejected.push_back(fmt::format("{}: {}; passed over", folder, why));
    } catch (const DataError& error) {
      latest.rejected.emplace_back(error.what());
      latest.any_damaged = latest.any_damaged || has_manifest(files, folder);
    }
  }
  return latest;
}

std::vector<StrangeCheckpoint> find_strangers(FileSystem& files, const std::string& root,
                                              const Objection& objection) {
  std::vector<StrangeCheckpoint> strangers;
  if (!files.exists(root)) return strangers;
  for (const std::int64_t step : steps_below(files, root)) {
    const std::string folder = checkpoint_folder(root, step);
    try {
      const std::string why = strangeness(read_manifest(files, folder), step, objection);
      if (!why.empty()) strangers.push_back({folder, why});
    } catch (const DataError&) {
      // Unfinished or damaged: whose it is cannot be known.
    }
  }
  return strangers;
}

std::string make_room(FileSystem& files, const SaveRequest& request) {
  std::vector<std::string> complete;  // newest first
  std::string removed;
  const auto remove = [&](const std::string& folder) {
    remove_checkpoint(files, request.root, folder);
    removed += (removed.empty() ? "" : ", ") + folder;
  };
  if (!files.exists(request.root)) return removed;
  for (const std::int64_t older : steps_below(files, request.root)) {
    const std::string folder = checkpoint_folder(request.root, older);
    if (older > request.step) continue;
    if (!has_manifest(files, folder)) {
      remove(folder);
    } else if (!files.is_link(folder) &&
               owner_of(files, folder, older, request) == Owner::this_run) {
      complete.push_back(folder);
    }
  }
  if (complete.size() < 2) return removed;
  try {
    verify_checkpoint(files, complete.front());
  } catch (const Error&) {
    return removed;  // the older one may be the last that is whole
  }
  remove(complete.back());
  return removed;
}

}  // namespace thinwire
