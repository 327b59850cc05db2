#include "runtime/data_parallel.h"

#include <torch/torch.h>

namespace thinwire {
namespace {

BucketOptions for_attaching(BucketOptions options) {
  options.weights = WeightStorage::untouched;
  return options;
}

}  // namespace

std::vector<Parameter> parameters_of(const torch::nn::Module& module) {
  std::vector<Parameter> parameters;
  for (const auto& item : module.named_parameters()) {
    parameters.push_back({item.key(), item.value()});
  }
  return parameters;
}

void broadcast_tensors(Communicator& communicator, const std::vector<at::Tensor>& tensors,
                       int root) {
  const torch::NoGradGuard no_grad;
  for (const at::Tensor& tensor : tensors) {
    // As bytes: any dtype and any dense layout travels.
    at::Tensor flat = tensor.detach().contiguous().flatten();
    at::Tensor bytes = flat.view(at::kByte);
    communicator.broadcast(bytes, root)->wait();
    tensor.detach().copy_(flat.view(tensor.sizes()));
  }
}

DataParallel::DataParallel(const torch::nn::Module& module, Communicator& communicator,
                           CompressionOptions compression, BucketOptions buckets)
    : DataParallel(parameters_of(module), communicator, compression, buckets) {
  broadcast_tensors(communicator, module.buffers(), 0);
}

DataParallel::DataParallel(std::vector<Parameter> parameters, Communicator& communicator,
                           CompressionOptions compression, BucketOptions buckets)
    : buckets_(std::move(parameters), for_attaching(buckets)),
      reducer_(make_reducer(compression)),
      bucket_reducer_(buckets_, *reducer_, communicator) {
  std::vector<at::Tensor> tensors;
  for (const auto& parameter : buckets_.parameters()) tensors.push_back(parameter.tensor);
  broadcast_tensors(communicator, tensors, 0);
}

Verdict DataParallel::finish() {
  const Verdict verdict = bucket_reducer_.finish();
  if (!verdict.committed()) ++skipped_;
  bucket_reducer_.set_step({.step = ++attempted_});
  return verdict;
}

void DataParallel::visit(StateVisitor& visitor) {
  visitor.counter("attempted", attempted_);
  visitor.counter("skipped", skipped_);
  for (const Bucket& bucket : buckets_.buckets()) reducer_->visit(bucket, visitor);
}

}  // namespace thinwire
