// PowerSGD's kernels on the host for all matrices of a bucket, one matrix after another.
#include <algorithm>
#include <vector>

#include "collectives/base/team.h"
#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/kernels/orthonormal.h"

namespace thinwire {
namespace {

template <typename Body>
void each_matrix(const LowRankTables& tables, Body body) {
  for (std::int64_t i = 0; i < tables.matrix_count; ++i) body(tables.matrices[i]);
}

// What a thread takes of a matrix at least: some ten microseconds' work, and enough rows that
// bringing the right factor into the order of vectors is little beside them.
constexpr std::int64_t least_elements = 1 << 15;
constexpr std::int64_t least_rows = 64;

// Calls body(shape, row, matrix) with bands of every matrix: the band's shape and its first row.
// Rows are taken by fours, as the kernels for one matrix do.
template <typename Body>
void each_band(const LowRankTables& tables, const Executor& on, Body body) {
  each_matrix(tables, [&](const LowRankMatrix& matrix) {
    const LowRankShape& whole = matrix.shape;
    const std::int64_t least =
        std::max(least_rows, least_elements / std::max<std::int64_t>(1, whole.columns));
    share_out(on.team, (whole.rows + 3) / 4, least / 4, [&](std::int64_t begin, std::int64_t end) {
      LowRankShape band = whole;
      band.rows = std::min(4 * end, whole.rows) - 4 * begin;
      body(band, 4 * begin, matrix);
    });
  });
}

template <typename T>
void orthonormal_left(const OrthonormalArgs<T>& args, const Executor& on) {
  share_out(on.team, args.tables.matrix_count, 1, [&](std::int64_t begin, std::int64_t end) {
    Orthonormalizer orthonormal;
    for (std::int64_t m = begin; m < end; ++m) {
      const LowRankMatrix& matrix = args.tables.matrices[m];
      const auto [rows, columns, rank] = matrix.shape;
      orthonormal.run({.count = rank, .length = rows, .vector = 1, .element = rank}, args.tolerance,
                      args.factors + matrix.left, nullptr);
    }
  });
}

template <typename T>
void orthonormal_right(const OrthonormalArgs<T>& args, const Executor& on) {
  share_out(on.team, args.tables.matrix_count, 1, [&](std::int64_t begin, std::int64_t end) {
    Orthonormalizer orthonormal;
    for (std::int64_t m = begin; m < end; ++m) {
      const LowRankMatrix& matrix = args.tables.matrices[m];
      const std::int64_t rank = matrix.shape.rank;
      const std::int64_t columns = matrix.shape.columns;
      T* factor = args.factors + matrix.right;
      if (args.kept == nullptr) {
        std::fill_n(factor, rank * columns, T{0});
      } else {
        std::copy_n(args.kept + matrix.factor, rank * columns, factor);
      }
      orthonormal.run({.count = rank, .length = columns, .vector = columns, .element = 1},
                      args.tolerance, factor, [&](std::int64_t k, double* elements) {
                        for (std::int64_t i = 0; i < columns; ++i) {
                          elements[i] =
                              low_rank_draw(args.draw_key, matrix.fresh, args.step, columns, k, i);
                        }
                      });
    }
  });
}

template <typename T>
void project_left_all(const ProjectLeftArgs<T>& args, const Executor& on) {
  each_band(args.tables, on,
            [&](const LowRankShape& band, std::int64_t row, const LowRankMatrix& matrix) {
              LowRankOwed<T> owed = owed_of(args.owed, matrix);
              if (owed.residual != nullptr) owed.residual += row * band.columns;
              if (owed.left != nullptr) owed.left += row * band.rank;
              project_left(band, args.bucket + matrix.matrix + row * band.columns, owed,
                           args.right + matrix.right, args.left + matrix.left + row * band.rank);
            });
}

// One matrix's, whose parts of low_rank_part rows are summed on several threads: each part's sums
// first, then all of them in order, as on one.
template <typename T>
void project_right_in_parts(const LowRankShape& shape, const T* matrix, const T* left, T* right,
                            Team& team) {
  const std::int64_t parts = (shape.rows + low_rank_part - 1) / low_rank_part;
  const std::int64_t size = shape.rank * shape.columns;
  std::vector<T> sums(static_cast<std::size_t>(parts * size));
  share_out(&team, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = begin; part < end; ++part) {
      const std::int64_t row = part * low_rank_part;
      LowRankShape rows = shape;
      rows.rows = std::min(low_rank_part, shape.rows - row);
      project_right(rows, matrix + row * shape.columns, left + row * shape.rank,
                    sums.data() + part * size);
    }
  });
  std::copy_n(sums.data(), size, right);
  for (std::int64_t part = 1; part < parts; ++part) {
    const T* more = sums.data() + part * size;
    for (std::int64_t i = 0; i < size; ++i) right[i] += more[i];
  }
}

template <typename T>
void project_right_all(const ProjectRightArgs<T>& args, const Executor& on) {
  each_matrix(args.tables, [&](const LowRankMatrix& matrix) {
    const T* values = args.bucket + matrix.matrix;
    const T* left = args.left + matrix.left;
    T* right = args.right + matrix.right;
    if (on.team != nullptr && on.team->size() > 1 && matrix.shape.rows > low_rank_part) {
      project_right_in_parts(matrix.shape, values, left, right, *on.team);
    } else {
      project_right(matrix.shape, values, left, right);
    }
  });
}

template <typename T>
void multiply_all(const LowRankProductArgs<T>& args, const Executor& on) {
  each_band(args.tables, on,
            [&](const LowRankShape& band, std::int64_t row, const LowRankMatrix& matrix) {
              multiply_factors(band, args.left + matrix.left + row * band.rank,
                               args.right + matrix.right,
                               args.bucket + matrix.matrix + row * band.columns);
            });
}

template <typename T>
void subtract_all(const LowRankProductArgs<T>& args, const Executor& on) {
  each_band(args.tables, on,
            [&](const LowRankShape& band, std::int64_t row, const LowRankMatrix& matrix) {
              subtract_product(band, args.left + matrix.left + row * band.rank,
                               args.right + matrix.right,
                               args.bucket + matrix.matrix + row * band.columns);
            });
}

}  // namespace

LowRankTiles make_tiles(std::vector<LowRankMatrix>& matrices) {
  LowRankTiles made;
  std::vector<LowRankTile> others;
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    const auto index = static_cast<std::int32_t>(m);
    const auto [rows, columns, rank] = matrices[m].shape;
    made.largest_rank = std::max(made.largest_rank, rank);
    for (std::int64_t row = 0; row < rows; row += low_rank_band) {
      made.bands.push_back({.matrix = index, .row = row});
    }
    for (std::int64_t row = 0; row < rows; row += low_rank_part) {
      for (std::int64_t column = 0; column < columns; column += low_rank_columns) {
        (row == 0 ? made.tiles : others).push_back({.matrix = index, .row = row, .column = column});
      }
    }
    if (rows <= low_rank_part) continue;
    matrices[m].partial = made.partial;
    made.partial += (rows + low_rank_part - 1) / low_rank_part * rank * columns;
  }
  made.top_tile_count = std::ssize(made.tiles);
  made.tiles.insert(made.tiles.end(), others.begin(), others.end());
  return made;
}

template <typename T>
LowRankKernels<T> host_low_rank_kernels() {
  return {orthonormal_left<T>,  orthonormal_right<T>, project_left_all<T>,
          project_right_all<T>, multiply_all<T>,      subtract_all<T>};
}

template LowRankKernels<float> host_low_rank_kernels<float>();
template LowRankKernels<double> host_low_rank_kernels<double>();

}  // namespace thinwire
