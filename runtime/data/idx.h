// IDX, the file format of MNIST and its kin.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "runtime/data/dataset.h"

namespace thinwire {

// An IDX file's contents: unsigned bytes, the last dimension fastest.
struct IdxArray {
  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> values;
};

// Reads an IDX file of unsigned bytes with `dimensions` dimensions, none of them zero. A file that
// begins like gzip is one gzip member and is decompressed.
// Throws DataError where the file is missing, damaged, truncated or too long, or another kind of
// IDX file; IoError where it cannot be read.
IdxArray read_idx(const std::filesystem::path& file, int dimensions);

// Reads Fashion-MNIST (or MNIST: same names, ten classes) from `folder`, whose four files
// {train,t10k}-{images-idx3,labels-idx1}-ubyte may each end in .gz; the plain one is preferred.
// Pixels are normalised with Fashion-MNIST's mean .2860 and standard deviation .3530.
// Throws as `read_idx`, and DataError where labels do not fit their images.
DataSplit load_fashion_mnist(const std::filesystem::path& folder);

}  // namespace thinwire
