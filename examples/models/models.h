// The models that a command line can name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/data/dataset.h"
#include "runtime/model/model.h"

namespace thinwire {

// `spec` is one of
//   mlp[:hidden=256]  hidden layers of these widths with ReLU, e.g. mlp:hidden=2048,2048,2048;
//                     samples of any shape
//   convnet           two convolutions with pooling and one hidden layer, no normalisation; 91 % on
//                     Fashion-MNIST after four epochs of 128 samples per step, momentum .9 and a
//                     rate of .05 with a cosine to zero; samples [channels, >= 4, >= 4]
//   resnet8           the ResNet of CIFAR with 6n+2 layers at n = 1: widths 16, 32, 64
//   resnet18          its large kin: [2, 2, 2, 2] blocks, widths 64 to 512
//   gpt[:layers=4,heads=4,width=128,dropout=0.1]
//                     GPT-2's blocks with a tied embedding, on text; .8 million parameters as it
//                     is; samples [context], int64
// Both ResNets have batch normalisation and projection shortcuts (option B) and take samples
// [channels, height, width] of any size.
//
// `sample_shape` is one sample's, without the batch. Parameters hold arbitrary values until
// `initialize_parameters`. May be called from several threads at once.
// Throws UsageError for another spec and for samples that the model cannot take.
Model make_model(const std::string& spec, const std::vector<std::int64_t>& sample_shape,
                 std::int64_t classes);

// The model for `data`'s samples. Throws also where it gives one answer to a sample and the data
// ask for many, or the other way round.
Model make_model(const std::string& spec, const Dataset& data);

}  // namespace thinwire
