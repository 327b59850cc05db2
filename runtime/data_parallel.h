// Data-parallel gradients for a training loop that you already have.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/compression/options.h"
#include "runtime/buckets/bucket_reducer.h"
#include "runtime/buckets/gradient_buckets.h"
#include "runtime/trainer/model.h"
#include "runtime/trainer/model_state.h"

namespace thinwire {

// The parameters of a module under their names; a tied one once, under its first name.
std::vector<Parameter> parameters_of(const torch::nn::Module& module);

// Makes the gradients of a module the mean over ranks, whichever optimizer uses them:
//
//   thinwire::DataParallel parallel(*model, communicator);        // once
//   ...
//   loss.backward();
//   parallel.finish();                                            // every step
//   optimizer.step();
//
// At construction every rank's parameters and buffers become rank 0's. Communication overlaps with
// backward. Clip after `finish`; do not keep handles of gradients across it. When a gradient is not
// finite on some rank, the step is rolled back on all: every grad() is undefined, so that
// optimizer.step() moves nothing, and the module's buffers are what they were after the step
// before. The first `compression.start_iter` committed steps go uncompressed. Loss must be a mean
// over the rank's samples. Buffers are each rank's own after the start.
class DataParallel {
 public:
  DataParallel(const torch::nn::Module& module, Communicator& communicator,
               CompressionOptions compression = {}, BucketOptions buckets = {});
  // `communicator` must outlive this.
  DataParallel(std::vector<Parameter> parameters, Communicator& communicator,
               CompressionOptions compression = {}, BucketOptions buckets = {});

  // Ends the step that the last backward() belongs to.
  Verdict finish();

  // While alive, backward() accumulates without communication: for all micro-batches but the last.
  class Accumulation {
   public:
    explicit Accumulation(BucketReducer& reducer) : reducer_(reducer) { reducer_.pause(); }
    ~Accumulation() { reducer_.resume(); }
    Accumulation(const Accumulation&) = delete;
    Accumulation& operator=(const Accumulation&) = delete;

   private:
    BucketReducer& reducer_;
  };
  [[nodiscard]] Accumulation accumulate() { return Accumulation(bucket_reducer_); }

  // What is compressed, how and why the rest is not, as lines for people.
  std::vector<std::string> describe_compression() const;
  // Steps that were rolled back.
  std::int64_t skipped() const { return skipped_; }
  // Residuals and the step counter, for a checkpoint. Between steps: before backward, or after
  // finish.
  void visit(StateVisitor& visitor);

 private:
  DataParallel(std::vector<Parameter> parameters, ModelBuffers module_buffers,
               Communicator& communicator, CompressionOptions compression, BucketOptions buckets);

  GradientBuckets buckets_;
  ModelBuffers module_buffers_;
  std::vector<at::Tensor> committed_buffers_;  // their values after the last committed step
  CompressionOptions compression_;
  std::unique_ptr<GradientReducer> reducer_;
  BucketReducer bucket_reducer_;
  void set_next_step();

  std::int64_t attempted_ = 0;
  std::int64_t skipped_ = 0;
};

// Collective: every rank's tensors become root's.
void broadcast_tensors(Communicator& communicator, const std::vector<at::Tensor>& tensors,
                       int root);

}  // namespace thinwire
