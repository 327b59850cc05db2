#include "tests/gpu/low_rank_gpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "collectives/compression/kernels/low_rank.h"
#include "tests/gpu/device.h"
#include "tests/gpu/kernels_gpu_times.h"

namespace thinwire::on_gpu {
namespace {

struct Places {
  std::vector<LowRankMatrix> matrices;
  LowRankTiles made;
  std::int64_t bucket = 0;
  std::int64_t left = 0;
  std::int64_t right = 0;
};

// Matrices one behind another, with `gap` unused values between them.
Places lay_out(const std::vector<LowRankShape>& shapes, std::int64_t gap) {
  Places places;
  for (const LowRankShape& shape : shapes) {
    places.matrices.push_back({.shape = shape,
                               .matrix = places.bucket,
                               .left = places.left,
                               .right = places.right,
                               .factor = places.right,
                               .fresh = 17 * places.matrices.size()});
    places.bucket += shape.rows * shape.columns + gap;
    places.left += shape.rows * shape.rank + gap;
    places.right += shape.columns * shape.rank;
  }
  places.made = make_tiles(places.matrices);
  return places;
}

// The tables on the GPU.
class Tables {
 public:
  explicit Tables(const Places& places)
      : matrices_(places.matrices), bands_(places.made.bands), tiles_(places.made.tiles) {
    tables_ = {.matrices = matrices_.data(),
               .matrix_count = std::ssize(places.matrices),
               .largest_rank = places.made.largest_rank,
               .bands = bands_.data(),
               .band_count = std::ssize(places.made.bands),
               .tiles = tiles_.data(),
               .tile_count = std::ssize(places.made.tiles),
               .top_tile_count = places.made.top_tile_count};
  }
  const LowRankTables& tables() const { return tables_; }

 private:
  Device<LowRankMatrix> matrices_;
  Device<LowRankTile> bands_;
  Device<LowRankTile> tiles_;
  LowRankTables tables_;
};

template <typename T>
std::vector<T> draws(Dice& dice, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(2 * dice.uniform() - 1);
  return values;
}

// A bucket and its factors on the GPU and, a copy, on the host.
template <typename T>
struct Both {
  explicit Both(std::vector<T> values) : host(std::move(values)), device(host) {}
  void expect_equal(const char* what) const { on_gpu::expect_equal(what, device.host(), host); }
  std::vector<T> host;
  Device<T> device;
};

}  // namespace

template <typename T>
void compare_low_rank(Dice& dice) {
  constexpr std::int64_t sizes[] = {1, 3, 16, 17, 64, 100, 255, 257, 700};
  std::vector<LowRankShape> shapes;
  for (std::int64_t i = 1 + dice.below(5); i > 0; --i) {
    const std::int64_t rows = sizes[dice.below(9)];
    const std::int64_t columns = sizes[dice.below(9)];
    shapes.push_back({rows, columns, std::min({rows, columns, 1 + dice.below(7)})});
  }
  const Places places = lay_out(shapes, dice.below(3));
  const LowRankTables on_host{.matrices = places.matrices.data(),
                              .matrix_count = std::ssize(places.matrices)};
  const Tables device_tables(places);
  const LowRankTables& on_device = device_tables.tables();
  const LowRankKernels<T> host = host_low_rank_kernels<T>();
  const LowRankKernels<T> device = cuda_low_rank_kernels<T>();

  Both<T> bucket(draws<T>(dice, places.bucket));
  Both<T> residual(draws<T>(dice, places.bucket));
  Both<T> left(draws<T>(dice, places.left));
  Both<T> right(draws<T>(dice, places.right));
  std::vector<T> kept_values = draws<T>(dice, places.right);
  // Columns that depend on others are dropped, or drawn anew.
  for (const LowRankMatrix& matrix : places.matrices) {
    const auto [rows, columns, rank] = matrix.shape;
    if (rank < 2 || dice.below(2) == 0) continue;
    const auto first = kept_values.begin() + matrix.factor;
    std::copy_n(first, columns, first + columns * dice.below(rank));
  }
  Both<T> kept(kept_values);
  Both<T> kept_left(draws<T>(dice, places.left));
  Both<T> mean(draws<T>(dice, places.right));
  Device<double> work(std::max(places.left, places.right));
  Device<T> partial(places.made.partial);

  OrthonormalArgs<T> start{.tables = on_host,
                           .kept = dice.below(4) == 0 ? nullptr : kept.host.data(),
                           .factors = right.host.data(),
                           .tolerance = 1e-5,
                           .draw_key = 99,
                           .step = static_cast<std::uint64_t>(dice.below(1000))};
  host.orthonormal_right(start, nullptr);
  start.tables = on_device;
  if (start.kept != nullptr) start.kept = kept.device.data();
  start.factors = right.device.data();
  start.work = work.data();
  device.orthonormal_right(start, nullptr);
  right.expect_equal("the start");

  // What is owed: nothing, a residual, or one less a product.
  const std::int64_t owed = dice.below(3);
  host.project_left(
      {.tables = on_host,
       .bucket = bucket.host.data(),
       .owed = {owed > 0 ? residual.host.data() : nullptr,
                owed > 1 ? kept_left.host.data() : nullptr, owed > 1 ? kept.host.data() : nullptr},
       .right = right.host.data(),
       .left = left.host.data()},
      nullptr);
  device.project_left({.tables = on_device,
                       .bucket = bucket.device.data(),
                       .owed = {owed > 0 ? residual.device.data() : nullptr,
                                owed > 1 ? kept_left.device.data() : nullptr,
                                owed > 1 ? kept.device.data() : nullptr},
                       .right = right.device.data(),
                       .left = left.device.data()},
                      nullptr);
  bucket.expect_equal("M = g + e");
  left.expect_equal("P = M Q");

  host.orthonormal_left({.tables = on_host, .factors = left.host.data(), .tolerance = 1e-5},
                        nullptr);
  device.orthonormal_left(
      {.tables = on_device, .factors = left.device.data(), .work = work.data(), .tolerance = 1e-5},
      nullptr);
  left.expect_equal("P, orthonormal");

  host.project_right({.tables = on_host,
                      .bucket = bucket.host.data(),
                      .left = left.host.data(),
                      .right = right.host.data()},
                     nullptr);
  device.project_right({.tables = on_device,
                        .bucket = bucket.device.data(),
                        .left = left.device.data(),
                        .partial = partial.data(),
                        .right = right.device.data()},
                       nullptr);
  right.expect_equal("Q = M^T P");

  host.subtract({.tables = on_host,
                 .left = kept_left.host.data(),
                 .right = kept.host.data(),
                 .bucket = residual.host.data()},
                nullptr);
  device.subtract({.tables = on_device,
                   .left = kept_left.device.data(),
                   .right = kept.device.data(),
                   .bucket = residual.device.data()},
                  nullptr);
  residual.expect_equal("e - P Q^T");
  host.multiply({.tables = on_host,
                 .left = left.host.data(),
                 .right = mean.host.data(),
                 .bucket = bucket.host.data()},
                nullptr);
  device.multiply({.tables = on_device,
                   .left = left.device.data(),
                   .right = mean.device.data(),
                   .bucket = bucket.device.data()},
                  nullptr);
  bucket.expect_equal("P Q^T");
}

void print_low_rank_times() {
  std::vector<LowRankShape> shapes = {{30522, 1024, 4}, {512, 1024, 4}};
  for (int layer = 0; layer < 24; ++layer) {
    for (int i = 0; i < 4; ++i) shapes.push_back({1024, 1024, 4});
    shapes.push_back({4096, 1024, 4});
    shapes.push_back({1024, 4096, 4});
  }
  const Places places = lay_out(shapes, 0);
  const Tables device_tables(places);
  const LowRankTables& tables = device_tables.tables();
  Dice dice(1);
  const std::vector<float> values = draws<float>(dice, 1 << 20);
  Device<float> bucket(places.bucket), residual(places.bucket);
  bucket.repeat(values);
  residual.repeat(values);
  Device<float> left(places.left), right(places.right), own(places.right), kept(places.right);
  Device<float> own_left(places.left);
  own_left.repeat(values);
  left.repeat(values);
  right.repeat(values);
  kept.repeat(values);
  own.repeat(values);
  Device<double> work(std::max(places.left, places.right));
  Device<float> partial(places.made.partial);
  const LowRankKernels<float> kernels = cuda_low_rank_kernels<float>();
  const double bytes = 4 * static_cast<double>(places.bucket);
  fmt::print("PowerSGD, rank 4, {} matrices of {:.1f} M values\n", shapes.size(), bytes / 4e6);
  const auto start = [&] {
    kernels.orthonormal_right({.tables = tables,
                               .kept = kept.data(),
                               .factors = right.data(),
                               .work = work.data(),
                               .tolerance = 2e-6},
                              nullptr);
  };
  const auto project_left = [&] {
    kernels.project_left({.tables = tables,
                          .bucket = bucket.data(),
                          .owed = {residual.data(), own_left.data(), own.data()},
                          .right = right.data(),
                          .left = left.data()},
                         nullptr);
  };
  const auto orthonormal_left = [&] {
    kernels.orthonormal_left(
        {.tables = tables, .factors = left.data(), .work = work.data(), .tolerance = 2e-6},
        nullptr);
  };
  const auto project_right = [&] {
    kernels.project_right({.tables = tables,
                           .bucket = bucket.data(),
                           .left = left.data(),
                           .partial = partial.data(),
                           .right = right.data()},
                          nullptr);
  };
  const auto back = [&] {
    kernels.multiply(
        {.tables = tables, .left = left.data(), .right = right.data(), .bucket = residual.data()},
        nullptr);
  };
  report("orthonormal Q", 0, start);
  report("M = g + e, P = M Q", 3 * bytes, project_left);
  report("orthonormal P", 0, orthonormal_left);
  report("Q = M^T P", bytes, project_right);
  report("P Q^T", bytes, back);
  report("the whole step", 5 * bytes, [&] {
    start();
    project_left();
    orthonormal_left();
    project_right();
    back();
  });
}

template void compare_low_rank<float>(Dice&);
template void compare_low_rank<double>(Dice&);

}  // namespace thinwire::on_gpu
