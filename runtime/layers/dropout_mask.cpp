#include "runtime/layers/dropout_mask.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "collectives/base/error.h"
#include "collectives/base/philox.h"

namespace thinwire {
namespace {

// A block of Philox serves four elements, one word each.
constexpr std::int64_t kWords = 4;

// An element is dropped where its word is below this.
std::uint32_t threshold_of(double probability) {
  check(probability >= 0 && probability < 1, "a dropout probability in [0, 1)");
  return static_cast<std::uint32_t>(std::min(std::round(probability * 0x1p32), 0x1p32 - 1));
}

template <typename T>
void fill(T* mask, std::int64_t begin, std::int64_t end, const Philox& draws,
          std::uint32_t threshold, T kept) {
  for (std::int64_t i = begin; i < end; i += kWords) {
    const PhiloxBlock block = draws.block(static_cast<std::uint64_t>(i / kWords));
    const std::int64_t count = std::min(kWords, end - i);
    for (std::int64_t j = 0; j < count; ++j) {
      mask[i + j] = block[static_cast<std::size_t>(j)] < threshold ? T(0) : kept;
    }
  }
}

template <typename T>
void fill_in_threads(at::Tensor& mask, const Philox& draws, std::uint32_t threshold, T kept) {
  T* to = mask.mutable_data_ptr<T>();
  const std::int64_t numel = mask.numel();
  const std::int64_t blocks = (numel + kWords - 1) / kWords;
  at::parallel_for(0, blocks, 4096, [&](std::int64_t begin, std::int64_t end) {
    fill(to, begin * kWords, std::min(end * kWords, numel), draws, threshold, kept);
  });
}

}  // namespace

at::Tensor dropout_mask(const at::Tensor& input, double probability, std::uint64_t seed,
                        std::uint64_t stream) {
  if (!input.device().is_cpu()) {
    return detail::dropout_mask_by_operations(input, probability, seed, stream);
  }
  const std::uint32_t threshold = threshold_of(probability);
  const Philox draws(seed, PhiloxStream::dropout, stream);
  const double kept = 1 / (1 - probability);
  at::Tensor mask = at::empty(input.sizes(), input.options().requires_grad(false));
  switch (input.scalar_type()) {
    case at::kFloat:
      fill_in_threads(mask, draws, threshold, static_cast<float>(kept));
      break;
    case at::kDouble:
      fill_in_threads(mask, draws, threshold, kept);
      break;
    case at::kBFloat16:
      fill_in_threads(mask, draws, threshold, at::BFloat16(static_cast<float>(kept)));
      break;
    case at::kHalf:
      fill_in_threads(mask, draws, threshold, at::Half(static_cast<float>(kept)));
      break;
    default:
      check(false, "dropout of float32, float64, bfloat16 or float16");
  }
  return mask;
}

at::Tensor detail::dropout_mask_by_operations(const at::Tensor& input, double probability,
                                              std::uint64_t seed, std::uint64_t stream) {
  const at::NoGradGuard no_grad;
  const std::uint32_t threshold = threshold_of(probability);
  // The words of a block as int64, below 2^32. A product wraps in int64 as it does in uint64, and
  // the mask takes away what an arithmetic shift brings in.
  constexpr std::int64_t kWord = 0xffffffff;
  const auto high = [](const at::Tensor& x) {
    return x.bitwise_right_shift(32).bitwise_and(kWord);
  };
  const auto low = [](const at::Tensor& x) { return x.bitwise_and(kWord); };
  const auto blocks = (input.numel() + kWords - 1) / kWords;
  const at::Tensor counter = at::arange(blocks, input.options().dtype(at::kLong));
  const auto word = [&](std::uint64_t value) {
    return at::full_like(counter, static_cast<std::int64_t>(value & kWord));
  };
  std::array<at::Tensor, 4> c{low(counter), high(counter), word(stream), word(stream >> 32)};
  const std::uint64_t key = Philox(seed, PhiloxStream::dropout, stream).key();
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const at::Tensor p0 = c[0].mul(std::int64_t{0xD2511F53});
    const at::Tensor p1 = c[2].mul(std::int64_t{0xCD9E8D57});
    c = {high(p1).bitwise_xor_(c[1]).bitwise_xor_(std::int64_t{k0}), low(p1),
         high(p0).bitwise_xor_(c[3]).bitwise_xor_(std::int64_t{k1}), low(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  const at::Tensor words = at::stack({c[0], c[1], c[2], c[3]}, 1).flatten();
  const at::Tensor keep = words.narrow(0, 0, input.numel()).ge(std::int64_t{threshold});
  return keep.to(input.scalar_type()).mul_(1 / (1 - probability)).view(input.sizes());
}

}  // namespace thinwire
