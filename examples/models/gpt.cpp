#include "examples/models/gpt.h"

#include <string>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

torch::nn::LayerNorm norm(std::int64_t width) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({width}));
}

}  // namespace

GptBlock::GptBlock(const GptOptions& options) : heads_(options.heads) {
  const std::int64_t width = options.width;
  ln_1_ = register_module("ln_1", norm(width));
  qkv_ = register_module("qkv", torch::nn::Linear(width, 3 * width));
  attn_proj_ = register_module("attn_proj", torch::nn::Linear(width, width));
  attn_drop_ = register_module("attn_drop", std::make_shared<PhiloxDropout>(options.dropout));
  ln_2_ = register_module("ln_2", norm(width));
  fc_ = register_module("fc", torch::nn::Linear(width, 4 * width));
  mlp_proj_ = register_module("mlp_proj", torch::nn::Linear(4 * width, width));
  mlp_drop_ = register_module("mlp_drop", std::make_shared<PhiloxDropout>(options.dropout));
}

at::Tensor GptBlock::attention(const at::Tensor& input) {
  // [n, length, 3 * width] to three of [n, heads, length, width / heads].
  const auto parts = qkv_->forward(input).unflatten(2, {3, heads_, -1}).permute({2, 0, 3, 1, 4});
  const at::Tensor mixed = at::scaled_dot_product_attention(
      parts[0], parts[1], parts[2], /*attn_mask=*/{}, /*dropout_p=*/0, /*is_causal=*/true);
  return attn_proj_->forward(mixed.transpose(1, 2).flatten(2));
}

at::Tensor GptBlock::forward(const at::Tensor& input) {
  const at::Tensor x = input + attn_drop_->forward(attention(ln_1_->forward(input)));
  const at::Tensor hidden = at::gelu(fc_->forward(ln_2_->forward(x)));
  return x + mlp_drop_->forward(mlp_proj_->forward(hidden));
}

Gpt::Gpt(const GptOptions& options) : options_(options) {
  check(options.width % options.heads == 0, "width is a multiple of heads");
  wte_ = register_module("wte", torch::nn::Embedding(options.vocabulary, options.width));
  wpe_ = register_module("wpe", torch::nn::Embedding(options.context, options.width));
  drop_ = register_module("drop", std::make_shared<PhiloxDropout>(options.dropout));
  const auto blocks = register_module("h", std::make_shared<torch::nn::ModuleListImpl>());
  for (std::int64_t i = 0; i < options.layers; ++i) {
    blocks_.push_back(std::make_shared<GptBlock>(options));
    blocks->push_back(blocks_.back());
  }
  ln_f_ = register_module("ln_f", norm(options.width));
}

at::Tensor Gpt::forward(const at::Tensor& tokens) {
  const std::int64_t length = tokens.size(1);
  check(length <= options_.context, "an input within the context");
  at::Tensor x = drop_->forward(wte_->forward(tokens) + wpe_->weight.narrow(0, 0, length));
  for (const auto& block : blocks_) x = block->forward(x);
  // Tied by use, not by a second name: the matrix is one parameter, sent and stepped once.
  return at::linear(ln_f_->forward(x), wte_->weight);
}

}  // namespace thinwire
