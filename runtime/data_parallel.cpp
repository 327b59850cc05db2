#include "runtime/data_parallel.h"

#include <torch/torch.h>

#include <algorithm>
#include <set>

#include "runtime/trainer/compression.h"

namespace thinwire {
namespace {

BucketOptions for_attaching(BucketOptions options) {
  options.weights = WeightStorage::untouched;
  return options;
}

}  // namespace

std::vector<Parameter> parameters_of(const torch::nn::Module& module) {
  std::vector<Parameter> parameters;
  std::set<const void*> seen;
  for (const auto& item : module.named_parameters()) {
    if (!seen.insert(item.value().unsafeGetTensorImpl()).second) continue;
    parameters.push_back({item.key(), item.value()});
  }
  return parameters;
}

void broadcast_tensors(Communicator& communicator, const std::vector<at::Tensor>& tensors,
                       int root) {
  const torch::NoGradGuard no_grad;
  for (const at::Tensor& tensor : tensors) {
    // As bytes: any dtype and any dense layout travels.
    at::Tensor flat = tensor.detach().cpu().contiguous().flatten();
    at::Tensor bytes = flat.view(at::kByte);
    communicator.broadcast(bytes, root)->wait();
    tensor.detach().copy_(flat.view(tensor.sizes()));
  }
}

DataParallel::DataParallel(const torch::nn::Module& module, Communicator& communicator,
                           CompressionOptions compression, BucketOptions buckets)
    : DataParallel(parameters_of(module), ModelBuffers(module), communicator, compression,
                   buckets) {}

DataParallel::DataParallel(std::vector<Parameter> parameters, Communicator& communicator,
                           CompressionOptions compression, BucketOptions buckets)
    : DataParallel(std::move(parameters), ModelBuffers(), communicator, compression, buckets) {}

DataParallel::DataParallel(std::vector<Parameter> parameters, ModelBuffers module_buffers,
                           Communicator& communicator, CompressionOptions compression,
                           BucketOptions buckets)
    : buckets_(std::move(parameters), for_attaching(buckets)),
      module_buffers_(std::move(module_buffers)),
      compression_(std::move(compression)),
      reducer_(make_reducer(compression_)),
      bucket_reducer_(buckets_, *reducer_, communicator) {
  std::vector<at::Tensor> tensors = module_buffers_.tensors();
  for (const auto& parameter : buckets_.parameters()) tensors.push_back(parameter.tensor);
  broadcast_tensors(communicator, tensors, 0);
  committed_buffers_ = module_buffers_.clone();
  set_next_step();
}

void DataParallel::set_next_step() {
  bucket_reducer_.set_step({.step = attempted_,
                            .transmission = transmission_of(compression_, attempted_ - skipped_,
                                                            Transmission::compressed)});
}

Verdict DataParallel::finish() {
  const Verdict verdict = bucket_reducer_.finish();
  if (verdict.committed()) {
    committed_buffers_ = module_buffers_.clone();
  } else {
    ++skipped_;
    module_buffers_.assign(committed_buffers_);
  }
  ++attempted_;
  set_next_step();
  return verdict;
}

std::vector<std::string> DataParallel::describe_compression() const {
  const std::int64_t until_start =
      std::max<std::int64_t>(compression_.start_iter - (attempted_ - skipped_), 0);
  std::vector<std::string> lines = thinwire::describe_compression(
      buckets_.buckets(), *reducer_, compression_.policy, attempted_ + 1 + until_start);
  if (const auto warning = divergence_warning(resolve(compression_))) {
    lines.push_back("warning: " + *warning);
  }
  return lines;
}

void DataParallel::visit(StateVisitor& visitor) {
  visitor.counter("attempted", attempted_);
  visitor.counter("skipped", skipped_);
  for (const Bucket& bucket : buckets_.buckets()) reducer_->visit(bucket, visitor);
  set_next_step();  // the visitor may have filled the counters in
}

}  // namespace thinwire
