// Checkpoints of a loop of the user's own.
#include <fmt/format.h>
#include <torch/torch.h>

#include <cstring>
#include <sstream>
#include <tuple>
#include <utility>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "runtime/checkpoint/lineage.h"
#include "runtime/checkpoint/load.h"
#include "runtime/data_parallel.h"

namespace thinwire {
namespace {

// The state of an optimizer of libtorch's as bytes, in the form that torch::save writes.
at::Tensor bytes_of(const torch::optim::Optimizer& optimizer) {
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  std::ostringstream stream;
  archive.save_to(stream);
  const std::string text = stream.str();
  at::Tensor bytes = torch::empty({static_cast<std::int64_t>(text.size())}, torch::kByte);
  std::memcpy(bytes.data_ptr(), text.data(), text.size());
  return bytes;
}

void fill_in(torch::optim::Optimizer& optimizer, const at::Tensor& bytes) {
  std::istringstream stream(std::string(static_cast<const char*>(bytes.const_data_ptr()),
                                        static_cast<std::size_t>(bytes.numel())));
  torch::serialize::InputArchive archive;
  archive.load_from(stream);
  optimizer.load(archive);
}

// Shows the bytes; a visitor that fills them in has told their count before.
void visit_bytes(at::Tensor& bytes, StateVisitor& visitor) {
  std::int64_t count = bytes.defined() ? bytes.numel() : 0;
  visitor.counter("torch_optimizer_bytes", count);
  if (count < 0 || count > (std::int64_t{1} << 40)) {
    throw DataError(fmt::format(
        "the checkpoint says that the optimizer's state has {} bytes; it is damaged", count));
  }
  if (!bytes.defined() || bytes.numel() != count) bytes = torch::empty({count}, torch::kByte);
  visitor.tensor({.name = "torch_optimizer", .kind = StateKind::replicated, .tensor = bytes});
}

}  // namespace

void DataParallel::visit_model(StateVisitor& visitor, const std::vector<at::Tensor>& mean_buffers) {
  visit_parameters(buckets_->parameters(), visitor);
  visit_parameters(fixed_, visitor);
  module_buffers_.visit_mean(visitor, mean_buffers);
}

SaveResult DataParallel::save(const std::string& folder, std::int64_t step,
                              const torch::optim::Optimizer& optimizer) {
  require_between_steps();
  check_replicas();
  const torch::NoGradGuard no_grad;
  StateCollector model;
  visit_model(model, module_buffers_.mean(*calls_));
  StateCollector other;
  visit(other);
  module_buffers_.visit_own(other);
  at::Tensor bytes = bytes_of(optimizer);
  visit_bytes(bytes, other);
  PosixFileSystem files;
  return save_checkpoint(files, *calls_, {.root = folder, .step = step, .info = {}}, model, other);
}

std::optional<std::int64_t> DataParallel::load(const std::string& folder,
                                               torch::optim::Optimizer& optimizer) {
  require_between_steps();
  const torch::NoGradGuard no_grad;
  PosixFileSystem files;
  const std::string found = rank_zero_says(*calls_, [&]() -> std::string {
    const LatestCheckpoint latest = find_latest_checkpoint(files, folder);
    for (const auto& sentence : latest.rejected) warn(sentence);
    return latest.found ? latest.found->folder : "";
  });
  if (found.empty()) return std::nullopt;
  const Manifest manifest = read_manifest(files, found);
  const std::vector<at::Tensor> unused = module_buffers_.clone();
  at::Tensor bytes;
  std::vector<std::string> warnings;
  const std::pair counters{attempted_, skipped_};
  try {
    layouts_.begin_to_load(manifest.counters, buckets_->buckets(), *transaction_);
    warnings = load_checkpoint(
        files, found, manifest, calls_->rank(), calls_->size(),
        [&](StateVisitor& visitor) { visit_model(visitor, unused); },
        [&](StateVisitor& visitor) {
          visit(visitor);
          module_buffers_.visit_own(visitor);
          visit_bytes(bytes, visitor);
        });
  } catch (...) {
    std::tie(attempted_, skipped_) = counters;
    set_next_step();
    layouts_.load_failed(buckets_->buckets(), *transaction_);
    throw;
  }
  layouts_.end_of_load(buckets_->buckets(), *transaction_);
  for (const auto& warning : warnings) warn(warning);
  fill_in(optimizer, bytes);
  committed_buffers_ = module_buffers_.clone();
  return manifest.step;
}

}  // namespace thinwire
