// A run's checkpoints: saving them, and going on from one.
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/load.h"
#include "runtime/model/parameters.h"
#include "runtime/trainer/position.h"
#include "runtime/trainer/trainer.h"

namespace thinwire {

std::string Trainer::save(Retry retry) {
  if (last_saved_step_ == attempted_) return {};
  const Doing saving(parts_.recorder, "writing a checkpoint");
  is_last_checkpoint_gone();
  SaveResult result = save_once();
  if (!result.complete && retry == Retry::once) {
    parts_.observer.on_line("warning: " + result.warning + "; trying once more");
    if (result.lacks_space) make_room_for_last();
    result = save_once();
  }
  if (!result.warning.empty()) parts_.observer.on_line("warning: " + result.warning);
  if (!result.complete) return result.warning;
  last_checkpoint_ = result.folder;
  last_saved_step_ = attempted_;
  return {};
}

SaveRequest Trainer::save_request() const {
  SaveRequest request{.root = checkpoint_root(options_), .step = attempted_, .info = parts_.info};
  request.info.merge(lineage());
  for (const auto& [key, value] : lineage()) {
    // These may change their options on the way.
    if (key != "model" && key != "optimizer") request.identity.insert(key);
  }
  return request;
}

SaveResult Trainer::save_once() {
  require_equal_replicas(parts_.communicator, parameters());
  const std::vector<at::Tensor> mean = model_buffers_.mean(parts_.communicator);
  StateCollector model;
  visit_parameters(parameters(), model);
  model_buffers_.visit_mean(model, mean);
  StateCollector other;
  visit(other);
  return save_checkpoint(parts_.files, parts_.communicator, save_request(), model, other);
}

// Collective.
void Trainer::make_room_for_last() {
  rank_zero_says(parts_.communicator, [&]() -> std::string {
    try {
      const std::string removed = make_room(parts_.files, save_request());
      parts_.observer.on_line(removed.empty() ? "warning: there is no checkpoint to spare"
                                              : "warning: removed " + removed + " to make room");
    } catch (const Error& error) {
      parts_.observer.on_line(fmt::format("warning: no room could be made: {}", error.what()));
    }
    return {};
  });
}

// Collective: whether somebody removed the last checkpoint, which is said then.
bool Trainer::is_last_checkpoint_gone() {
  if (!last_checkpoint_) return false;
  const std::string answer = rank_zero_says(parts_.communicator, [&] {
    try {
      const bool there =
          parts_.files.exists(fmt::format("{}/{}", *last_checkpoint_, manifest_name));
      return there ? "there" : "gone";
    } catch (const Error&) {
      return "there";  // for all that is known
    }
  });
  if (answer == "there") return false;
  parts_.observer.on_line(
      fmt::format("warning: somebody removed {}, the last checkpoint", *last_checkpoint_));
  last_checkpoint_.reset();
  return true;
}

Lineage Trainer::lineage() const {
  std::string layout;
  std::int64_t values = 0;
  for (const auto& [name, tensor] : parameters()) {
    layout += fmt::format("{} {} {}\n", name, toString(tensor.scalar_type()),
                          fmt::join(tensor.sizes(), " "));
    values += tensor.numel();
  }
  return {{"seed", std::to_string(options_.seed)},
          {"training samples", std::to_string(parts_.data.train->size())},
          {"training data", hex64(parts_.data.train->fingerprint())},
          {"data partition", partition_ ? partition_->name() : "iid"},
          {"model", options_.model},
          {"optimizer", options_.optimizer},
          {"parameters", fmt::format("{} values in {} tensors ({})", values, parameters().size(),
                                     hex64(hash64(layout)))}};
}

Resumption Trainer::resume() {
  if (options_.resume.empty()) return {};
  const Doing reading(parts_.recorder, "reading a checkpoint");
  const at::NoGradGuard no_grad;
  Resumption resumption =
      choose_checkpoint(parts_.files, parts_.communicator, options_, lineage(), parts_.observer);
  if (!resumption.folder) return resumption;
  const std::string& folder = *resumption.folder;
  const Manifest manifest = read_manifest(parts_.files, folder);
  resumption.step = manifest.step;
  require_possible_position({folder, manifest}, order_.dataset_size());
  if (manifest.world_size != parts_.communicator.size()) {
    parts_.observer.on_line(fmt::format(
        "the checkpoint is of {} ranks, this run has {}: parameters and optimizer are exact, "
        "residuals restart from their mean, the order of samples is unchanged",
        manifest.world_size, parts_.communicator.size()));
  }
  const std::vector<at::Tensor> unused = model_buffers_.clone();
  layouts_.begin_to_load(manifest.counters, buckets_->buckets(), *transaction_);
  const auto warnings = load_checkpoint(
      parts_.files, folder, manifest, parts_.communicator.rank(), parts_.communicator.size(),
      [&](StateVisitor& visitor) {
        visit_parameters(parameters(), visitor);
        model_buffers_.visit_mean(visitor, unused);
      },
      [&](StateVisitor& visitor) { visit(visitor); });
  layouts_.end_of_load(buckets_->buckets(), *transaction_);
  for (const auto& warning : warnings) parts_.observer.on_line("warning: " + warning);
  last_checkpoint_ = folder;
  last_saved_step_ = attempted_;
  parts_.observer.on_line(fmt::format("resumed from {} at step {}", folder, attempted_));
  const std::string changes = describe_changes(manifest.info, parts_.info);
  if (!changes.empty()) parts_.observer.on_line("resumed with changes: " + changes);
  if (finished()) {
    parts_.observer.on_line(
        fmt::format("nothing left to train: step {} of {}", attempted_, total_steps()));
  }
  return resumption;
}

}  // namespace thinwire
