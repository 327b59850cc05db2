// What PowerSgdReducer makes of a bucket's layout: shapes, messages, and the kernels' tables.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/compression/reducer/power_sgd.h"

namespace thinwire {
namespace {

constexpr std::int64_t kCheckedBlock = 1024;  // values; of a size that suits a GPU

// Blocks over elements from `begin` on, as a check of what is finite takes them.
void add_blocks(std::vector<Block>& blocks, std::size_t slice, std::int64_t begin,
                std::int64_t count) {
  for (std::int64_t done = 0; done < count; done += kCheckedBlock) {
    blocks.push_back({.begin = begin + done,
                      .count = static_cast<std::int32_t>(std::min(kCheckedBlock, count - done)),
                      .slice = static_cast<std::int32_t>(slice)});
  }
}

// How many rows of a partly live matrix are live; 0 where it is not whole rows that are.
std::int64_t live_rows(const Slice& slice, const Liveness& live, std::int64_t columns) {
  std::int64_t rows = 0;
  for (const Range& range : live.ranges(slice.numel)) {
    if (range.begin % columns != 0 || range.end % columns != 0) return 0;
    rows += range.count() / columns;
  }
  return rows;
}

}  // namespace

bool PowerSgdReducer::is_matrix(const Slice& slice) const {
  return !slice.is_vector() && slice.numel > 0 && !reason_for_dense(slice, policy_);
}

LowRankShape PowerSgdReducer::whole_shape(const Bucket& bucket, const Layout& layout,
                                          std::size_t i) const {
  const Slice& slice = bucket.slices[i];
  if (!is_matrix(slice)) return {};
  const std::int64_t rows = slice.shape.front();
  const std::int64_t columns = slice.numel / rows;
  const auto chosen = layout.of(i).coding.rank;
  const std::int64_t rank =
      std::min({rows, columns, chosen.value_or(power_.matrix_approximation_rank)});
  // A rank that a layout chooses is not weighed once more.
  const bool pays =
      chosen || static_cast<double>((rows + columns) * rank) * power_.min_compression_rate <
                    static_cast<double>(slice.numel);
  return {rows, columns, pays ? rank : 0};
}

LowRankShape PowerSgdReducer::live_shape(const Bucket& bucket, std::size_t i) const {
  LowRankShape shape = whole_shape(bucket, bucket.layout, i);
  if (shape.rank == 0 || !bucket.layout.is_partial(i)) return shape;
  shape.rows = live_rows(bucket.slices[i], bucket.layout.of(i).live, shape.columns);
  shape.rank = std::min(shape.rank, shape.rows);
  return shape;
}

void PowerSgdReducer::require_possible(const Bucket& bucket, const Layout& layout) const {
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const SliceCoding& coding = layout.of(i).coding;
    const std::string& name = bucket.slices[i].name;
    if (coding.rank && *coding.rank < 0) {
      throw UsageError(fmt::format(
          "the layout of {} sets the rank {}; give 1 or more, or 0 to leave it uncompressed", name,
          *coding.rank));
    }
    if (coding.rank && !is_matrix(bucket.slices[i]) && bucket.slices[i].numel > 0) {
      throw UsageError(fmt::format(
          "the layout of {} sets a rank, but it goes uncompressed; leave the rank out", name));
    }
    if (coding.bits || coding.block || coding.density) {
      throw UsageError(fmt::format(
          "the layout of {} sets bits, block or density, which powersgd does not have; set its "
          "rank",
          name));
    }
  }
}

void PowerSgdReducer::prepare(const Bucket& bucket, int, int) {
  check(bucket.gradient.is_cpu() || !device_.queue->on_host(),
        "a bucket on a device has a reducer of that device");
  BucketState here;
  here.chunks = one_chunk(bucket);
  here.slices.resize(bucket.slices.size());
  if (feedback_) here.residual = at::zeros_like(bucket.gradient);
  if (power_.warm_start) here.factors = at::zeros({0}, bucket.gradient.options());
  here.flag = FiniteFlag(bucket, *device_.queue);
  states_.insert_or_assign(bucket.index, std::move(here));
}

void PowerSgdReducer::relayout(const Bucket& bucket) {
  adopt_layout(bucket, state_of(bucket));
}

void PowerSgdReducer::adopt_layout(const Bucket& bucket, BucketState& here) {
  if (here.live.filled() && here.layout.is(bucket.layout)) return;
  form_residual(here);
  bring_out_of_order(bucket, here);
  here.before = {here.kept_left, here.kept_right, here.factors};
  here.layout = bucket.layout;
  clear_gone(bucket, here.residual, {0, bucket.numel()}, *device_.queue);
  lay_out_slices(bucket, here);
  count_live(bucket, here.chunks);
  here.order.set(bucket, here.chunks, *device_.queue);
  lay_out_messages(bucket, here);
  lay_out_matrices(bucket, here);
}

void PowerSgdReducer::bring_out_of_order(const Bucket& bucket, BucketState& here) {
  if (!here.residual_is_in_order) return;
  here.order.revert(here.residual, {0, bucket.numel()}, device_);
  here.residual_is_in_order = false;
}

// Shapes, factors and residuals: the leading columns of the factors stay, new ones are zero, which
// has them drawn.
void PowerSgdReducer::lay_out_slices(const Bucket& bucket, BucketState& here) {
  const std::vector<SliceState> before = here.slices;
  std::int64_t factors = 0;
  bool moved = false;
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    SliceState& now = here.slices[i];
    now.whole = whole_shape(bucket, bucket.layout, i);
    now.live = live_shape(bucket, i);
    now.factor = factors;
    factors += now.whole.rank * now.whole.columns;
    moved = moved || now.factor != before[i].factor || now.whole.rank != before[i].whole.rank;
    // Once layouts change, any matrix may be one that was compressed or will be.
    const bool has_residual = now.whole.rank > 0 || (!bucket.layout.is_plain() && is_matrix(slice));
    if (!has_residual || now.has_residual) continue;
    now.has_residual = true;
    if (!feedback_) continue;
    const auto width = static_cast<std::int64_t>(here.residual.element_size());
    device_.queue->fill(static_cast<char*>(here.residual.data_ptr()) + slice.offset * width, 0,
                        static_cast<std::size_t>(slice.numel * width));
  }
  if (!power_.warm_start || !(moved || here.factors.numel() != factors)) return;
  const at::Tensor old = here.factors;
  here.factors = at::empty({factors}, old.options());
  device_.queue->fill(here.factors.data_ptr(), 0, here.factors.nbytes());
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const LowRankShape& whole = here.slices[i].whole;
    copy(here.factors, here.slices[i].factor, old, before[i].factor,
         std::min(before[i].whole.rank, whole.rank) * whole.columns);
  }
}

// Where everything is in the messages.
void PowerSgdReducer::lay_out_messages(const Bucket& bucket, BucketState& here) {
  here.matrices.clear();
  here.matrix_slices.clear();
  here.passengers.clear();
  std::vector<Block> live, first, second, owing;
  std::int64_t message = 0;
  std::int64_t right = 0;
  for (const Piece& piece : here.chunks[0].pieces) {
    const std::size_t i = piece.slice;
    const LowRankShape& shape = here.slices[i].live;
    if (piece.live == 0) continue;
    add_blocks(live, i, piece.begin, piece.live);
    if (shape.rank == 0) {
      here.passengers.push_back({.slice = i, .count = piece.live});
      continue;
    }
    here.matrices.push_back({.shape = shape,
                             .matrix = piece.begin,
                             .left = message,
                             .right = right,
                             .factor = here.slices[i].factor,
                             .fresh = hash64(bucket.slices[i].name)});
    here.matrix_slices.push_back(i);
    add_blocks(first, i, message, shape.rows * shape.rank);
    message += shape.rows * shape.rank;
    add_blocks(second, i, right, shape.rank * shape.columns);
    right += shape.rank * shape.columns;
  }
  here.left_numel = message;
  const auto width = static_cast<std::int64_t>(bucket.gradient.element_size());
  for (Passenger& passenger : here.passengers) {
    passenger.begin = message;
    add_blocks(first, passenger.slice, message, passenger.count);
    if (feedback_ && here.slices[passenger.slice].has_residual) {
      const std::size_t begin = owing.size();
      add_blocks(owing, passenger.slice, bucket.slices[passenger.slice].offset, passenger.count);
      for (std::size_t b = begin; b < owing.size(); ++b) {
        owing[b].payload =
            (message + owing[b].begin - bucket.slices[passenger.slice].offset) * width;
      }
    }
    message += passenger.count;
  }
  here.live.fill(live, bucket.gradient, *device_.queue);
  here.first.fill(first, bucket.gradient, *device_.queue);
  here.second.fill(second, bucket.gradient, *device_.queue);
  here.owing.fill(owing, bucket.gradient, *device_.queue);
  const auto options = bucket.gradient.options();
  here.message = at::empty({message}, options);
  here.right = at::empty({right}, options);
  here.own_right = at::empty({right}, options);
  if (feedback_) {
    here.kept_left = at::empty({here.left_numel}, options);
    here.kept_right = at::empty({right}, options);
  }
}

// The kernels' tables and what else they need.
void PowerSgdReducer::lay_out_matrices(const Bucket& bucket, BucketState& here) {
  const LowRankTiles made = make_tiles(here.matrices);
  here.table.fill(here.matrices, bucket.gradient, *device_.queue);
  here.bands.fill(made.bands, bucket.gradient, *device_.queue);
  here.tiles.fill(made.tiles, bucket.gradient, *device_.queue);
  here.largest_rank = made.largest_rank;
  here.top_tile_count = made.top_tile_count;
  if (device_.queue->on_host()) return;
  for (const LowRankMatrix& matrix : here.matrices) {
    check(matrix.shape.columns < std::int64_t{1} << 28,
          "a GPU counts the elements of a few rows in ints");
  }
  const auto options = bucket.gradient.options();
  here.vectors =
      at::empty({std::max(here.left_numel, here.right.numel())}, options.dtype(at::kDouble));
  here.partial = at::empty({made.partial}, options);
}

}  // namespace thinwire
