#include "runtime/checkpoint/load.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <string_view>
#include <tuple>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "runtime/checkpoint/state_file.h"

namespace thinwire {
namespace {

// Restores counters at once and remembers tensors.
class Restorer : public StateVisitor {
 public:
  Restorer(const Manifest& manifest, std::string folder)
      : manifest_(manifest), folder_(std::move(folder)) {}

  void tensor(const StateEntry& entry) override { asked_.tensor(entry); }
  void counter(const std::string& name, std::int64_t& value) override {
    asked_.counter(name, value);
    const auto saved = manifest_.counters.find(name);
    if (saved == manifest_.counters.end()) {
      throw DataError(
          fmt::format("{}/{}: has no counter '{}'; resume with the configuration that saved it",
                      folder_, manifest_name, name));
    }
    value = saved->second;
  }
  const std::vector<StateEntry>& entries() const { return asked_.entries(); }

 private:
  const Manifest& manifest_;
  std::string folder_;
  StateCollector asked_;
};

// The entries of a file by their name and range. The list must outlive it.
class Index {
 public:
  explicit Index(const std::vector<StateEntry>& entries) {
    for (const auto& entry : entries) places_.emplace(key_of(entry), &entry);
  }
  // Null if there is none.
  const StateEntry* find(const StateEntry& asked) const {
    const auto found = places_.find(key_of(asked));
    return found == places_.end() ? nullptr : found->second;
  }

 private:
  using Key = std::tuple<std::string_view, std::int64_t, std::int64_t>;
  static Key key_of(const StateEntry& entry) { return {entry.name, entry.begin, entry.end}; }
  std::map<Key, const StateEntry*> places_;
};

// Puts the tensors of one checkpoint into place.
class Loader {
 public:
  Loader(FileSystem& files, std::string folder, const Manifest& manifest)
      : files_(files), folder_(std::move(folder)), manifest_(manifest) {}

  // Exact copies of what is replicated in `asked`, from the file called `name`.
  void load_replicated(std::string_view name, const std::vector<StateEntry>& asked) {
    const std::vector<StateEntry> saved = read(name);
    const Index index(saved);
    for (const auto& entry : asked) {
      if (entry.kind != StateKind::replicated) continue;
      const StateEntry* found = index.find(entry);
      if (found == nullptr) {
        throw DataError(
            fmt::format("{}: has no tensor '{}'; resume with the configuration that saved it",
                        path_, entry.name));
      }
      copy(entry, found->tensor);
    }
    warn_of_unused(asked);
  }

  // This rank's own state. Returns what its file does not hold under the same name and range.
  std::vector<StateEntry> load_own(int rank, const std::vector<StateEntry>& asked) {
    const std::vector<StateEntry> saved = read(rank_file_name(rank));
    const Index index(saved);
    std::vector<StateEntry> left;
    for (const auto& entry : asked) {
      if (const StateEntry* found = index.find(entry)) {
        copy(entry, found->tensor);
      } else {
        left.push_back(entry);
      }
    }
    return left;
  }

  // The mean of what is averaged, and ranges from whatever pieces overlap them.
  void load_from_all_ranks(const std::vector<StateEntry>& asked) {
    std::map<std::string, at::Tensor> sums;
    std::map<std::string, int> found;  // in how many pieces or ranks
    std::multimap<std::string_view, const StateEntry*> by_name;
    for (const auto& entry : asked) {
      entry.tensor.zero_();
      by_name.emplace(entry.name, &entry);
    }
    for (int rank = 0; rank < manifest_.world_size; ++rank) {
      const std::vector<StateEntry> saved = read(rank_file_name(rank));
      for (const auto& piece : saved) {
        const auto [first, last] = by_name.equal_range(piece.name);
        for (auto place = first; place != last; ++place) {
          const StateEntry& entry = *place->second;
          if (piece.kind != entry.kind) continue;
          ++found[entry.name];
          if (entry.kind == StateKind::ranged) {
            fill(entry, piece);
          } else {
            add(entry, piece.tensor, rank, sums);
          }
        }
      }
    }
    std::vector<std::string> absent;
    for (const auto& entry : asked) {
      if (found[entry.name] == 0) {
        absent.push_back(entry.name);
      } else {
        finish(entry, sums, found[entry.name]);
      }
    }
    if (!absent.empty()) {
      warnings_.push_back(
          fmt::format("{} tensors are not in the checkpoint and start at zero: '{}'{}",
                      absent.size(), absent.front(), absent.size() > 1 ? " and so on" : ""));
    }
  }

  // Warns of what was read since the last such call and is not in `asked`.
  void warn_of_unused(const std::vector<StateEntry>& asked) {
    for (const auto& entry : asked) saved_names_.erase(entry.name);
    if (!saved_names_.empty()) {
      warnings_.push_back(fmt::format("{}: {} of its tensors are not used by this run, e.g. '{}'",
                                      path_, saved_names_.size(),
                                      printable(*saved_names_.begin())));
    }
    saved_names_.clear();
  }

  std::vector<std::string> take_warnings() { return std::move(warnings_); }

 private:
  std::vector<StateEntry> read(std::string_view name) {
    path_ = fmt::format("{}/{}", folder_, name);
    auto saved = read_state(read_listed_file(files_, folder_, manifest_, name), path_);
    for (const auto& entry : saved) {
      // Another rank may own a range now.
      if (entry.kind != StateKind::ranged) saved_names_.insert(entry.name);
    }
    return saved;
  }

  void require(bool same, const StateEntry& entry, const at::Tensor& saved) const {
    if (same) return;
    const auto describe = [](const at::Tensor& tensor) {
      return c10::str(tensor.scalar_type(), " ", tensor.sizes());
    };
    throw DataError(fmt::format(
        "{}: tensor '{}' is {}, but {} is wanted; resume with the configuration that saved it",
        path_, entry.name, describe(saved), describe(entry.tensor)));
  }

  void copy(const StateEntry& entry, const at::Tensor& saved) const {
    require(
        saved.scalar_type() == entry.tensor.scalar_type() && saved.sizes() == entry.tensor.sizes(),
        entry, saved);
    entry.tensor.copy_(saved);
  }

  void fill(const StateEntry& entry, const StateEntry& piece) const {
    require(piece.tensor.scalar_type() == entry.tensor.scalar_type(), entry, piece.tensor);
    const std::int64_t begin = std::max(entry.begin, piece.begin);
    const std::int64_t count = std::min(entry.end, piece.end) - begin;
    if (count <= 0) return;
    entry.tensor.narrow(0, begin - entry.begin, count)
        .copy_(piece.tensor.narrow(0, begin - piece.begin, count));
  }

  void add(const StateEntry& entry, const at::Tensor& saved, int rank,
           std::map<std::string, at::Tensor>& sums) const {
    if (at::isFloatingType(entry.tensor.scalar_type())) {
      require(saved.scalar_type() == entry.tensor.scalar_type() &&
                  saved.sizes() == entry.tensor.sizes(),
              entry, saved);
      auto& sum = sums[entry.name];
      if (!sum.defined()) sum = at::zeros(saved.sizes(), at::TensorOptions().dtype(at::kDouble));
      sum.add_(saved);
    } else if (rank == 0) {
      copy(entry, saved);
    }
  }

  void finish(const StateEntry& entry, std::map<std::string, at::Tensor>& sums, int found) {
    if (entry.kind == StateKind::averaged) {
      if (found != manifest_.world_size) {
        throw DataError(fmt::format("{}: only {} of {} ranks saved '{}'; use another checkpoint",
                                    folder_, found, manifest_.world_size, entry.name));
      }
      if (sums.contains(entry.name)) {
        entry.tensor.copy_(sums[entry.name].div_(manifest_.world_size));
      }
    }
  }

  FileSystem& files_;
  std::string folder_;
  const Manifest& manifest_;
  std::string path_;  // the file that was read last
  std::set<std::string> saved_names_;
  std::vector<std::string> warnings_;
};

}  // namespace

std::vector<std::string> load_checkpoint(FileSystem& files, const std::string& folder,
                                         const Manifest& manifest, int rank, int world_size,
                                         const ShowState& show_model, const ShowState& show_other) {
  const at::NoGradGuard no_grad;
  Restorer model(manifest, folder);
  Restorer other(manifest, folder);
  show_model(model);
  show_other(other);

  Loader loader(files, folder, manifest);
  loader.load_replicated(model_file_name, model.entries());
  loader.load_replicated(optimizer_file_name, other.entries());
  std::vector<StateEntry> own;
  for (const auto* state : {&model, &other}) {
    std::copy_if(state->entries().begin(), state->entries().end(), std::back_inserter(own),
                 [](const StateEntry& entry) { return entry.kind != StateKind::replicated; });
  }
  const std::vector<StateEntry> left =
      world_size == manifest.world_size ? loader.load_own(rank, own) : own;
  if (!left.empty()) loader.load_from_all_ranks(left);
  loader.warn_of_unused(own);
  return loader.take_warnings();
}

}  // namespace thinwire
