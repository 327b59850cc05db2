#include "collectives/compression/reducer/saturation.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

constexpr std::int64_t kEvery = 100;  // steps
// Twice the square of what rounding loses of a value, and more than a float's sum does.
constexpr double kRounding = 1.0 / (1 << 21);

}  // namespace

void Saturation::begin(std::int64_t step, std::int64_t block_count, const at::Tensor& like,
                       Queue& queue) {
  looks_ = step % kEvery == 0 && block_count > 0;
  if (!looks_ || (energy_.defined() && energy_.numel() == 2 * block_count)) return;
  energy_ = at::empty({2 * block_count}, like.options());
  on_host_ = queue.host_memory(energy_.nbytes());
}

void Saturation::fetch(Queue& queue) {
  if (looks_) queue.copy(on_host_.get(), energy_.const_data_ptr(), energy_.nbytes());
}

std::optional<std::string> Saturation::name(const Bucket& bucket,
                                            const QueueTable<Block>& table) const {
  if (!looks_) return std::nullopt;
  return with_type(energy_.scalar_type(), [&]<typename T>(T) -> std::optional<std::string> {
    const auto* sums = static_cast<const T*>(on_host_.get());
    for (const Block& block : table.entries()) {
      const double message = *sums++;
      const double lost = *sums++;
      if (message > largest_ * largest_ && (std::isinf(message) || lost > kRounding * message)) {
        return bucket.slices[static_cast<std::size_t>(block.slice)].name;
      }
    }
    return std::nullopt;
  });
}

}  // namespace thinwire
