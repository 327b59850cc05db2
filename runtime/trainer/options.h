// What a training run was asked to do.
#pragma once

#include <cstdint>
#include <string>

namespace thinwire {

// Everything that `thinwire train` can be told. Each field is the flag of the same name, with '-'
// for '_'. A choice with options of its own is written "name:key=value,..."
// (collectives/base/choice_reader.h).
struct TrainOptions {
  // Data and model
  std::string model = "convnet";       // mlp | convnet | resnet8 | resnet18 | gpt
  std::string data = "fashion-mnist";  // fashion-mnist[:PATH] | synthetic | text[:PATH]
  std::string partition = "iid";       // iid | by_label[:classes=N]: which samples are a rank's
  std::int64_t batch_size = 64;        // samples per rank and micro-batch
  std::int64_t accumulate = 1;         // micro-batches per step
  std::string precision = "fp32";      // of forward and backward: fp32 | bf16; weights stay fp32

  // Length
  std::int64_t epochs = 1;  // passes over the training data
  std::int64_t steps = 0;   // steps; 0: as many as the epochs have

  // Optimizer
  std::string optimizer = "sgd";  // a word of `known_optimizers`
  double lr = 0.1;
  std::string lr_schedule = "constant";  // constant | step | cosine, each with warmup=STEPS
  double momentum = 0;
  double weight_decay = 0;  // not applied to biases and norms
  double clip_norm = 0;     // L2 norm of the whole gradient; 0: no clipping

  // Communication
  std::string compressor = "auto";  // as compressor_help says; auto: what the optimizer is made for
  std::string feedback = "auto";    // auto | none | error_feedback | ef21 | econtrol
  std::string exchange = "auto";    // auto | all_reduce | two_stage | all_gather
  std::int64_t start_iter = 0;      // committed steps before compression starts
  std::int64_t min_dimensions = 2;  // parameters of fewer dimensions go uncompressed,
  std::int64_t dense_below = 0;     // and so do parameters of fewer values
  std::string dense_names;          // and those whose names match one of these patterns: "A,B"
  double bucket_mb = 25;            // MiB of gradients that travel together
  std::int64_t timeout = 60;        // seconds that a collective may take
  std::int64_t check_every = 100;   // steps between comparisons of the ranks' weights; 0: only
                                    // at checkpoints and at the end

  // Run
  std::uint64_t seed = 1;
  std::string output = "runs/latest";
  std::int64_t checkpoint_every = 0;  // steps; 0: only at the end
  std::string resume;                 // empty: start anew; auto; or a checkpoint's folder
  std::int64_t report_every = 50;     // steps
  std::string trace;                  // file; empty: none
};

}  // namespace thinwire
