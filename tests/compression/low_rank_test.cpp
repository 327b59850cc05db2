// PowerSGD's kernels against plain loops in the order of sums that their header defines, to the
// bit, with every kind of vectors that this machine has.
#include <gtest/gtest.h>

#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "collectives/base/philox.h"
#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/kernels/orthonormal.h"

namespace thinwire {
namespace {

template <typename T>
std::vector<T> draws(std::int64_t count, std::uint64_t key) {
  const Philox philox(5, PhiloxStream::synthetic_data, key);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<T>(2 * philox.uniform(i) - 1);
  }
  return values;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
struct Plain {
  LowRankShape shape;

  T& at(std::vector<T>& matrix, std::int64_t i, std::int64_t j, std::int64_t columns) const {
    return matrix[static_cast<std::size_t>(i * columns + j)];
  }
  std::vector<T> left(std::vector<T> m, std::vector<T> right) const {
    std::vector<T> result;
    for (std::int64_t i = 0; i < shape.rows; ++i) {
      for (std::int64_t k = 0; k < shape.rank; ++k) {
        T lanes[16] = {};
        for (std::int64_t j = 0; j < shape.columns; ++j) {
          lanes[j % 16] += at(m, i, j, shape.columns) * at(right, k, j, shape.columns);
        }
        for (int width = 8; width > 0; width /= 2) {
          for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
        }
        result.push_back(lanes[0]);
      }
    }
    return result;
  }
  std::vector<T> right(std::vector<T> m, std::vector<T> left) const {
    std::vector<T> result;
    for (std::int64_t k = 0; k < shape.rank; ++k) {
      for (std::int64_t j = 0; j < shape.columns; ++j) {
        const auto product = [&](std::int64_t i) {
          return at(left, i, k, shape.rank) * at(m, i, j, shape.columns);
        };
        T total = 0;
        std::int64_t i = 0;
        while (i < shape.rows) {
          const std::int64_t end = std::min(shape.rows, i + 256);
          const bool first = i == 0;
          T sum = 0;
          for (; i + 4 <= end; i += 4) {
            sum += (product(i) + product(i + 1)) + (product(i + 2) + product(i + 3));
          }
          for (; i < end; ++i) sum += product(i);
          total = first ? sum : total + sum;
        }
        result.push_back(total);
      }
    }
    return result;
  }
  std::vector<T> product(std::vector<T> left, std::vector<T> right) const {
    std::vector<T> result;
    for (std::int64_t i = 0; i < shape.rows; ++i) {
      for (std::int64_t j = 0; j < shape.columns; ++j) {
        T sum = at(left, i, 0, shape.rank) * at(right, 0, j, shape.columns);
        for (std::int64_t k = 1; k < shape.rank; ++k) {
          sum += at(left, i, k, shape.rank) * at(right, k, j, shape.columns);
        }
        result.push_back(sum);
      }
    }
    return result;
  }
};

// Restores the choice of vectors.
struct OneTarget {
  explicit OneTarget(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~OneTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

template <typename T>
void check_shape(const LowRankShape& shape) {
  const auto [rows, columns, rank] = shape;
  const Plain<T> plain{shape};
  const std::vector<T> gradient = draws<T>(rows * columns, 1);
  const std::vector<T> residual = draws<T>(rows * columns, 2);
  const std::vector<T> q = draws<T>(rank * columns, 3);
  const std::vector<T> p = draws<T>(rank * rows, 4);
  const std::vector<T> own = draws<T>(rank * columns, 5);
  const std::vector<T> estimate = plain.product(p, q);
  const std::vector<T> sent = plain.product(p, own);
  std::vector<T> unsent = residual;
  for (std::size_t i = 0; i < unsent.size(); ++i) unsent[i] -= sent[i];
  const auto gradient_and = [&](std::vector<T> owed) {
    for (std::size_t i = 0; i < owed.size(); ++i) owed[i] = gradient[i] + owed[i];
    return owed;
  };

  std::vector<T> matrix = gradient;
  std::vector<T> left(p.size());
  project_left(shape, matrix.data(), LowRankOwed<T>{}, q.data(), left.data());
  EXPECT_TRUE(same_bits(matrix, gradient));
  EXPECT_TRUE(same_bits(left, plain.left(gradient, q)));
  project_left(shape, matrix.data(), LowRankOwed<T>{residual.data()}, q.data(), left.data());
  EXPECT_TRUE(same_bits(matrix, gradient_and(residual)));
  EXPECT_TRUE(same_bits(left, plain.left(gradient_and(residual), q)));
  matrix = gradient;
  project_left(shape, matrix.data(), LowRankOwed<T>{residual.data(), p.data(), own.data()},
               q.data(), left.data());
  const std::vector<T> m = gradient_and(unsent);
  EXPECT_TRUE(same_bits(matrix, m));
  EXPECT_TRUE(same_bits(left, plain.left(m, q)));

  std::vector<T> right(q.size(), T{7});
  project_right(shape, matrix.data(), p.data(), right.data());
  EXPECT_TRUE(same_bits(right, plain.right(m, p)));

  std::vector<T> into(m.size(), T{7});
  multiply_factors(shape, p.data(), q.data(), into.data());
  EXPECT_TRUE(same_bits(into, estimate));
  into = residual;
  subtract_product(shape, p.data(), own.data(), into.data());
  EXPECT_TRUE(same_bits(into, unsent));
}

TEST(LowRank, HasTheSameBitsWithAllVectors) {
  for (std::int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
    const OneTarget only(targets & -targets);
    SCOPED_TRACE(hwy::TargetName(targets & -targets));
    for (const std::int64_t rows : {1, 3, 4, 7, 64}) {
      for (const std::int64_t columns : {1, 5, 15, 16, 17, 27, 64, 100, 1000}) {
        for (const std::int64_t rank : {1, 2, 3, 4, 5, 8, 11}) {
          SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + ", rank " +
                       std::to_string(rank));
          check_shape<float>({rows, columns, rank});
          check_shape<double>({rows, columns, rank});
        }
      }
    }
    // More than one part of rows.
    for (const std::int64_t rows : {256, 259, 512, 1001}) {
      check_shape<float>({rows, 37, 5});
      check_shape<double>({rows, 37, 5});
    }
  }
}

// The largest deviation from an orthonormal set.
template <typename T>
double deviation(const std::vector<T>& vectors, std::int64_t count, std::int64_t length) {
  double worst = 0;
  for (std::int64_t a = 0; a < count; ++a) {
    for (std::int64_t b = 0; b <= a; ++b) {
      double sum = a == b ? -1 : 0;
      for (std::int64_t i = 0; i < length; ++i) {
        sum += static_cast<double>(vectors[static_cast<std::size_t>(a * length + i)]) *
               static_cast<double>(vectors[static_cast<std::size_t>(b * length + i)]);
      }
      worst = std::max(worst, std::abs(sum));
    }
  }
  return worst;
}

TEST(Orthonormal, VectorsThatAreAlmostParallelBecomeOrthonormal) {
  for (const double apart : {1.0, 1e-3, 1e-6}) {
    std::vector<double> vectors = draws<double>(8 * 500, 1);
    for (std::size_t i = 500; i < vectors.size(); ++i) {
      vectors[i] = vectors[i % 500] + apart * vectors[i];
    }
    Orthonormalizer().run({.count = 8, .length = 500, .vector = 500, .element = 1}, 1e-9,
                          vectors.data(), nullptr);
    EXPECT_LT(deviation(vectors, 8, 500), 1e-14) << apart;
  }
}

TEST(Orthonormal, SpansWhatItWasGivenInOrder) {
  const std::vector<double> before = draws<double>(3 * 50, 1);
  std::vector<double> after = before;
  Orthonormalizer().run({.count = 3, .length = 50, .vector = 50, .element = 1}, 1e-6, after.data(),
                        nullptr);
  // What is left of vector k once projected on the new vectors 0..k.
  for (std::size_t k = 0; k < 3; ++k) {
    std::vector<double> left(before.begin() + static_cast<long>(50 * k),
                             before.begin() + static_cast<long>(50 * (k + 1)));
    for (std::size_t j = 0; j <= k; ++j) {
      double share = 0;
      for (std::size_t i = 0; i < 50; ++i) share += left[i] * after[50 * j + i];
      for (std::size_t i = 0; i < 50; ++i) left[i] -= share * after[50 * j + i];
    }
    for (const double x : left) EXPECT_NEAR(x, 0, 1e-14);
  }
}

// A GPU forms the same sums: this order is part of what replicas agree on. Many vectors, as a root
// hides most differences of one.
TEST(Orthonormal, SumsAreFormedInTheOrderOfTheHeader) {
  for (const std::int64_t length : {1, 2, 31, 33, 1000, 1023, 1024, 1025, 3000}) {
    for (std::uint64_t key = 0; key < 30; ++key) {
      const std::vector<double> before = draws<double>(length, key);
      std::vector<double> lanes(1024);
      for (std::int64_t i = 0; i < length; ++i) {
        const double x = before[static_cast<std::size_t>(i)];
        lanes[static_cast<std::size_t>(i % 1024)] += x * x;
      }
      for (std::size_t width = 1; width < 1024; width *= 2) {
        for (std::size_t lane = 0; lane < 1024; lane += 2 * width) {
          lanes[lane] += lanes[lane + width];
        }
      }
      std::vector<double> after = before;
      Orthonormalizer().run({.count = 1, .length = length, .vector = length, .element = 1}, 1e-9,
                            after.data(), nullptr);
      for (std::size_t i = 0; i < before.size(); ++i) {
        ASSERT_EQ(after[i], before[i] / std::sqrt(lanes[0])) << length << ", " << key;
      }
    }
  }
}

TEST(LowRank, DrawsAreSumsOfPhilox) {
  const Philox philox(3, PhiloxStream::low_rank, 77);
  const auto words = philox.block((std::uint64_t{5} << 32) + 2 * 100 + 9);
  double sum = 0;
  for (const std::uint32_t word : words) sum += 2.0 * (word % 65536 + word / 65536) - 2.0 * 65535;
  EXPECT_EQ(low_rank_draw(philox.key(), 77, 5, 100, 2, 9), sum);
}

// Only GPUs use tiles.
TEST(LowRank, TilesCoverEveryElementOnce) {
  std::vector<LowRankMatrix> matrices;
  for (const auto& [rows, columns] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {64, 300}, {256, 256}, {257, 1000}, {1000, 3}, {513, 257}}) {
    matrices.push_back({.shape = {rows, columns, 2}});
  }
  const LowRankTiles made = make_tiles(matrices);
  std::int64_t partial = 0;
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    const auto [rows, columns, rank] = matrices[m].shape;
    std::vector<int> by_tiles(static_cast<std::size_t>(rows * columns));
    std::vector<int> by_bands(static_cast<std::size_t>(rows));
    for (const LowRankTile& tile : made.tiles) {
      if (tile.matrix != static_cast<std::int32_t>(m)) continue;
      for (std::int64_t i = tile.row; i < std::min(rows, tile.row + low_rank_part); ++i) {
        const std::int64_t end = std::min(columns, tile.column + low_rank_columns);
        for (std::int64_t j = tile.column; j < end; ++j) {
          ++by_tiles[static_cast<std::size_t>(i * columns + j)];
        }
      }
    }
    for (const LowRankTile& band : made.bands) {
      if (band.matrix != static_cast<std::int32_t>(m)) continue;
      for (std::int64_t i = band.row; i < std::min(rows, band.row + low_rank_band); ++i) {
        ++by_bands[static_cast<std::size_t>(i)];
      }
    }
    EXPECT_EQ(std::count(by_tiles.begin(), by_tiles.end(), 1), std::ssize(by_tiles));
    EXPECT_EQ(std::count(by_bands.begin(), by_bands.end(), 1), std::ssize(by_bands));
    if (rows <= low_rank_part) continue;
    EXPECT_EQ(matrices[m].partial, partial);
    partial += (rows + low_rank_part - 1) / low_rank_part * rank * columns;
  }
  EXPECT_EQ(made.partial, partial);
  for (std::int64_t t = 0; t < std::ssize(made.tiles); ++t) {
    EXPECT_EQ(made.tiles[static_cast<std::size_t>(t)].row == 0, t < made.top_tile_count);
  }
}

// Column by column in a matrix that is kept row by row gives what vector by vector gives.
TEST(Orthonormal, ReadsBothLayouts) {
  std::vector<float> one = draws<float>(3 * 40, 1);
  std::vector<float> other(one.size());
  for (std::size_t k = 0; k < 3; ++k) {
    for (std::size_t i = 0; i < 40; ++i) other[i * 3 + k] = one[k * 40 + i];
  }
  Orthonormalizer orthonormal;
  orthonormal.run({.count = 3, .length = 40, .vector = 40, .element = 1}, 1e-6, one.data(),
                  nullptr);
  orthonormal.run({.count = 3, .length = 40, .vector = 1, .element = 3}, 1e-6, other.data(),
                  nullptr);
  EXPECT_LT(deviation(one, 3, 40), 1e-6);
  for (std::size_t k = 0; k < 3; ++k) {
    for (std::size_t i = 0; i < 40; ++i) EXPECT_EQ(other[i * 3 + k], one[k * 40 + i]);
  }
}

TEST(Orthonormal, DropsOrRedrawsWhatDependsOnTheOthers) {
  const auto run = [](const Orthonormalizer::Redraw& redraw) {
    std::vector<float> vectors = draws<float>(4 * 60, 1);
    for (std::size_t i = 0; i < 60; ++i) {
      vectors[60 + i] = 3 * vectors[i];  // but for rounding
      vectors[120 + i] = 0;
    }
    Orthonormalizer().run({.count = 4, .length = 60, .vector = 60, .element = 1}, 1e-6,
                          vectors.data(), redraw);
    return vectors;
  };
  const std::vector<float> dropped = run(nullptr);
  for (std::size_t i = 60; i < 180; ++i) EXPECT_EQ(dropped[i], 0);
  std::vector<std::int64_t> redrawn;
  const std::vector<float> whole = run([&](std::int64_t k, double* elements) {
    redrawn.push_back(k);
    const auto fresh = draws<double>(60, static_cast<std::uint64_t>(10 + k));
    std::copy(fresh.begin(), fresh.end(), elements);
  });
  EXPECT_EQ(redrawn, (std::vector<std::int64_t>{1, 2}));
  EXPECT_LT(deviation(whole, 4, 60), 1e-6);
}

}  // namespace
}  // namespace thinwire
