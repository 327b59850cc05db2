#include "collectives/compression/kernels/orthonormal.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace thinwire {
namespace {

double dot(std::int64_t count, const double* a, const double* b) {
  // Lanes beyond the vector's end would add nothing.
  std::int64_t used = 1;
  while (used < count && used < orthonormal_lanes) used *= 2;
  double lanes[orthonormal_lanes];
  double halves[orthonormal_lanes / 2];
  std::fill_n(lanes, used, 0.0);
  std::int64_t i = 0;
  for (; i + orthonormal_lanes <= count; i += orthonormal_lanes) {
    for (std::int64_t lane = 0; lane < orthonormal_lanes; ++lane) {
      lanes[lane] += a[i + lane] * b[i + lane];
    }
  }
  for (std::int64_t lane = 0; i + lane < count; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  // Neighbours become one lane.
  double* from = lanes;
  double* to = halves;
  for (; used > 1; used /= 2) {
    for (std::int64_t lane = 0; lane < used / 2; ++lane) {
      to[lane] = from[2 * lane] + from[2 * lane + 1];
    }
    std::swap(from, to);
  }
  return from[0];
}

}  // namespace

// Whether vector k was kept; it has length 1 then.
bool Orthonormalizer::free_of_earlier(std::int64_t k, std::int64_t length, double tolerance,
                                      double shortest) {
  double* vector = vectors_.data() + k * length;
  const double before = std::sqrt(dot(length, vector, vector));
  for (int pass = 0; pass < 2; ++pass) {
    shares_.clear();
    for (std::int64_t earlier = 0; earlier < k; ++earlier) {
      shares_.push_back(dot(length, vectors_.data() + earlier * length, vector));
    }
    for (std::int64_t earlier = 0; earlier < k; ++earlier) {
      const double* direction = vectors_.data() + earlier * length;
      const double share = shares_[static_cast<std::size_t>(earlier)];
      for (std::int64_t i = 0; i < length; ++i) vector[i] -= share * direction[i];
    }
  }
  const double after = std::sqrt(dot(length, vector, vector));
  // False also for a length that overflowed.
  const bool kept = before >= shortest && after > tolerance * before;
  if (!kept) {
    std::fill_n(vector, length, 0.0);
    return false;
  }
  for (std::int64_t i = 0; i < length; ++i) vector[i] /= after;
  return true;
}

template <typename T>
void Orthonormalizer::run(const VectorLayout& layout, double tolerance, T* values,
                          const Redraw& redraw) {
  const double shortest = shortest_vector<T>;
  vectors_.resize(static_cast<std::size_t>(layout.count * layout.length));
  for (std::int64_t k = 0; k < layout.count; ++k) {
    double* vector = vectors_.data() + k * layout.length;
    T* place = values + k * layout.vector;
    for (std::int64_t i = 0; i < layout.length; ++i) vector[i] = place[i * layout.element];
    if (!free_of_earlier(k, layout.length, tolerance, shortest) && redraw) {
      redraw(k, vector);
      free_of_earlier(k, layout.length, tolerance, shortest);
    }
    for (std::int64_t i = 0; i < layout.length; ++i) {
      place[i * layout.element] = static_cast<T>(vector[i]);
    }
  }
}

template void Orthonormalizer::run<float>(const VectorLayout&, double, float*, const Redraw&);
template void Orthonormalizer::run<double>(const VectorLayout&, double, double*, const Redraw&);

}  // namespace thinwire
