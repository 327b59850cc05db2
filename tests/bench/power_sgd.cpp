// What PowerSGD costs on one core, beside `b += a` over the same memory.
//   power_sgd [rank]
#include <ATen/ops/ones.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/options.h"
#include "collectives/threads/thread_communicator.h"

namespace thinwire {
namespace {

struct Size {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t count = 1;  // matrices of this size
};

// 25.2 million values.
const std::vector<Size> kSquare = {{1024, 1024, 24}};
// The convolutions and the classifier of ResNet-50, 25.5 million values.
const std::vector<Size> kResnet50 = {
    {64, 147},      {64, 64},       {64, 576, 3},   {256, 64, 4},  {64, 256, 2},   {128, 256},
    {128, 1152, 4}, {512, 128, 4},  {512, 256},     {128, 512, 3}, {256, 512},     {256, 2304, 6},
    {1024, 256, 6}, {1024, 512},    {256, 1024, 5}, {512, 1024},   {512, 4608, 3}, {2048, 512, 3},
    {2048, 1024},   {512, 2048, 2}, {1000, 2048}};

Bucket bucket_of(const std::vector<Size>& sizes) {
  Bucket bucket;
  std::int64_t offset = 0;
  for (const Size& size : sizes) {
    for (std::int64_t i = 0; i < size.count; ++i) {
      bucket.slices.push_back({.name = fmt::format("p{}", bucket.slices.size()),
                               .shape = {size.rows, size.columns},
                               .offset = offset,
                               .numel = size.rows * size.columns});
      offset += (size.rows * size.columns + 15) / 16 * 16;
    }
  }
  bucket.gradient = at::ones({offset});
  return bucket;
}

// The best of `repeats`, in seconds.
template <typename Body>
double best_of(int repeats, Body body) {
  double best = 1e30;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    best = std::min(best, taken.count());
  }
  return best;
}

void run(const char* name, const std::vector<Size>& sizes, std::int64_t rank) {
  constexpr int repeats = 9;
  Bucket bucket = bucket_of(sizes);
  const auto n = static_cast<std::size_t>(bucket.numel());
  std::vector<float> values(n);
  std::vector<float> other(n);
  for (std::size_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>(static_cast<std::int64_t>(i * 2654435761u % 2001) - 1000);
  }
  const double add = best_of(repeats, [&] {
    float* b = other.data();
    const float* a = values.data();
    for (std::size_t i = 0; i < n; ++i) b[i] += a[i];
  });
  const auto report = [&](const char* what, double seconds) {
    fmt::print("{:<10} {:<36} {:7.2f} ms {:6.2f} x\n", name, what, 1e3 * seconds, seconds / add);
  };
  report("b += a", add);

  std::vector<float> left(n);
  std::vector<float> right(n);
  std::copy_n(values.begin(), n, right.begin());
  float* gradient = bucket.gradient.data_ptr<float>();
  const auto each = [&](auto body) {
    return best_of(repeats, [&] {
      for (const Slice& slice : bucket.slices) {
        const LowRankShape shape{slice.shape[0], slice.shape[1],
                                 std::min({slice.shape[0], slice.shape[1], rank})};
        body(shape, slice.offset);
      }
    });
  };
  report("M = g + e, P = M Q", each([&](const LowRankShape& shape, std::int64_t at) {
           project_left(shape, gradient + at, other.data() + at, right.data(), left.data());
         }));
  report("Q = M^T P", each([&](const LowRankShape& shape, std::int64_t at) {
           project_right(shape, gradient + at, left.data(), right.data());
         }));
  report("P Q^T and M - P Q^T", each([&](const LowRankShape& shape, std::int64_t at) {
           split_matrix(shape, left.data(), right.data(), values.data(), gradient + at,
                        other.data() + at);
         }));

  const auto group = make_thread_group(1);
  const auto reducer = make_reducer({PowerSgd{.matrix_approximation_rank = rank}});
  reducer->prepare(bucket, 0, 1);
  std::int64_t step = 0;
  double best = 1e30;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    std::copy_n(values.data(), n, bucket.gradient.data_ptr<float>());
    best = std::min(best, best_of(1, [&] {
                      reducer->stage(bucket, *group.front(), {.step = step++, .seed = 1});
                      reducer->settle(*group.front());
                      reducer->non_finite(bucket);
                      reducer->commit(bucket);
                    }));
  }
  report(fmt::format("a whole step, rank {}", rank).c_str(), best);
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  const std::int64_t rank = argc > 1 ? std::atoll(argv[1]) : 4;
  thinwire::run("square", thinwire::kSquare, rank);
  thinwire::run("resnet50", thinwire::kResnet50, rank);
}
