// A language model.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/layers/philox_dropout.h"

namespace thinwire {

// Sizes of a Gpt; each field but the first two is the key of the same name in "gpt:KEY=VALUE,...".
struct GptOptions {
  std::int64_t vocabulary = 0;
  std::int64_t context = 0;  // the longest input
  std::int64_t layers = 4;
  std::int64_t heads = 4;
  std::int64_t width = 128;  // a multiple of heads
  double dropout = 0.1;
};

// x + dropout(attn_proj(attention(qkv(ln_1(x))))), then x + dropout(mlp_proj(gelu(fc(ln_2(x))))).
// Attention is causal: a place sees itself and what comes before it.
class GptBlock : public torch::nn::Module {
 public:
  explicit GptBlock(const GptOptions& options);
  at::Tensor forward(const at::Tensor& input);  // [n, length, width] to the same

 private:
  at::Tensor attention(const at::Tensor& input);

  std::int64_t heads_;
  torch::nn::LayerNorm ln_1_{nullptr};
  torch::nn::Linear qkv_{nullptr};
  torch::nn::Linear attn_proj_{nullptr};
  torch::nn::LayerNorm ln_2_{nullptr};
  torch::nn::Linear fc_{nullptr};
  torch::nn::Linear mlp_proj_{nullptr};
  std::shared_ptr<PhiloxDropout> attn_drop_;
  std::shared_ptr<PhiloxDropout> mlp_drop_;
};

// GPT-2 (Radford et al., 2019): learned positions, blocks h.0, h.1, ... that normalise first, a
// last norm, and an output layer that is the token embedding's matrix (wte) once more. Dropout
// after the embeddings and on each residual branch, none on the attention's probabilities, which
// fused attention does not show.
class Gpt : public torch::nn::Module {
 public:
  explicit Gpt(const GptOptions& options);
  // Tokens int64 [n, length <= context] to logits [n, length, vocabulary]: at each place those of
  // the next token.
  at::Tensor forward(const at::Tensor& tokens);
  const GptOptions& options() const { return options_; }

 private:
  GptOptions options_;
  torch::nn::Embedding wte_{nullptr};
  torch::nn::Embedding wpe_{nullptr};
  std::shared_ptr<PhiloxDropout> drop_;
  std::vector<std::shared_ptr<GptBlock>> blocks_;
  torch::nn::LayerNorm ln_f_{nullptr};
};

}  // namespace thinwire
