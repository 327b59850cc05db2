// What PowerSGD costs on one core, beside `b += a` over the same memory.
//   power_sgd [rank [rounds]]
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <map>
#include <string>
#include <vector>

#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
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

// Seconds that this thread had a core.
double seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Times of several things, each the best of many rounds that take them in turn: what else the
// machine does hits all alike.
class Rounds {
 public:
  template <typename Body>
  void time(const std::string& what, Body body) {
    const double begin = seconds();
    body();
    const double taken = seconds() - begin;
    const auto [place, first] = best_.try_emplace(what, taken);
    if (first) order_.push_back(what);
    place->second = std::min(place->second, taken);
  }
  void print(const char* name) const {
    for (const std::string& what : order_) {
      fmt::print("{:<10} {:<24} {:7.2f} ms {:6.2f} x\n", name, what, 1e3 * best_.at(what),
                 best_.at(what) / best_.at(order_.front()));
    }
  }

 private:
  std::map<std::string, double> best_;
  std::vector<std::string> order_;
};

void run(const char* name, const std::vector<Size>& sizes, std::int64_t rank, int rounds) {
  Bucket bucket = bucket_of(sizes);
  const auto n = static_cast<std::size_t>(bucket.numel());
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>(static_cast<std::int64_t>(i * 2654435761u % 2001) - 1000);
  }
  at::Tensor other = at::ones_like(bucket.gradient);
  std::vector<float> left(n / 16);
  std::vector<float> right(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(n / 16));
  const auto group = make_thread_group(1);
  const auto reducer = make_reducer({PowerSgd{.matrix_approximation_rank = rank}});
  reducer->prepare(bucket, 0, 1);

  Rounds rounds_of;
  for (std::int64_t step = 0; step < rounds; ++step) {
    float* gradient = bucket.gradient.data_ptr<float>();
    float* residual = other.data_ptr<float>();
    std::copy_n(values.data(), n, gradient);
    rounds_of.time("b += a", [&] {
      for (std::size_t i = 0; i < n; ++i) residual[i] += gradient[i];
    });
    const auto each = [&](const char* what, auto body) {
      rounds_of.time(what, [&] {
        for (const Slice& slice : bucket.slices) {
          const std::int64_t of_it = std::min({slice.shape[0], slice.shape[1], rank});
          body(LowRankShape{slice.shape[0], slice.shape[1], of_it}, gradient + slice.offset,
               residual + slice.offset);
        }
      });
    };
    each("M = g + e, P = M Q", [&](const LowRankShape& shape, float* g, float* e) {
      project_left(shape, g, LowRankOwed<float>{e}, right.data(), left.data());
    });
    each("e formed there", [&](const LowRankShape& shape, float* g, float* e) {
      project_left(shape, g, LowRankOwed<float>{e, values.data(), values.data()}, right.data(),
                   left.data());
    });
    each("Q = M^T P", [&](const LowRankShape& shape, float* g, float*) {
      project_right(shape, g, left.data(), right.data());
    });
    each("P Q^T", [&](const LowRankShape& shape, float*, float* e) {
      multiply_factors(shape, left.data(), right.data(), e);
    });
    std::copy_n(values.data(), n, gradient);
    std::copy_n(values.data(), right.size(), right.data());
    other.fill_(1);
    rounds_of.time("the whole step", [&] {
      reducer->stage(bucket, *group.front(), {.step = step, .seed = 1});
      reducer->settle(*group.front());
      reducer->non_finite(bucket);
      reducer->commit(bucket);
    });
  }
  rounds_of.print(name);
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  const std::int64_t rank = argc > 1 ? std::atoll(argv[1]) : 4;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 15;
  thinwire::run("square", thinwire::kSquare, rank, rounds);
  thinwire::run("resnet50", thinwire::kResnet50, rank, rounds);
}
