// PowerSGD's kernels on the host for all matrices of a bucket, one matrix after another.
#include <algorithm>

#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/kernels/orthonormal.h"

namespace thinwire {
namespace {

template <typename Body>
void each_matrix(const LowRankTables& tables, Body body) {
  for (std::int64_t i = 0; i < tables.matrix_count; ++i) body(tables.matrices[i]);
}

template <typename T>
void orthonormal_left(const OrthonormalArgs<T>& args, StreamHandle) {
  Orthonormalizer orthonormal;
  each_matrix(args.tables, [&](const LowRankMatrix& matrix) {
    const auto [rows, columns, rank] = matrix.shape;
    orthonormal.run({.count = rank, .length = rows, .vector = 1, .element = rank}, args.tolerance,
                    args.factors + matrix.left, nullptr);
  });
}

template <typename T>
void orthonormal_right(const OrthonormalArgs<T>& args, StreamHandle) {
  Orthonormalizer orthonormal;
  each_matrix(args.tables, [&](const LowRankMatrix& matrix) {
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
  });
}

template <typename T>
void project_left_all(const ProjectLeftArgs<T>& args, StreamHandle) {
  each_matrix(args.tables, [&](const LowRankMatrix& matrix) {
    project_left(matrix.shape, args.bucket + matrix.matrix, owed_of(args.owed, matrix),
                 args.right + matrix.right, args.left + matrix.left);
  });
}

template <typename T>
void project_right_all(const ProjectRightArgs<T>& args, StreamHandle) {
  each_matrix(args.tables, [&](const LowRankMatrix& matrix) {
    project_right(matrix.shape, args.bucket + matrix.matrix, args.left + matrix.left,
                  args.right + matrix.right);
  });
}

template <typename T>
void multiply_all(const LowRankProductArgs<T>& args, StreamHandle) {
  each_matrix(args.tables, [&](const LowRankMatrix& matrix) {
    multiply_factors(matrix.shape, args.left + matrix.left, args.right + matrix.right,
                     args.bucket + matrix.matrix);
  });
}

template <typename T>
void subtract_all(const LowRankProductArgs<T>& args, StreamHandle) {
  each_matrix(args.tables, [&](const LowRankMatrix& matrix) {
    subtract_product(matrix.shape, args.left + matrix.left, args.right + matrix.right,
                     args.bucket + matrix.matrix);
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
