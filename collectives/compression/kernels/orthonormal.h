// Gram and Schmidt's process for a few long vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace thinwire {

// Where the elements of `count` vectors lie: element i of vector k at k * vector + i * element.
struct VectorLayout {
  std::int64_t count = 0;
  std::int64_t length = 0;
  std::int64_t vector = 0;
  std::int64_t element = 0;
};

// Below, T has no normal numbers, or their squares are none.
template <typename T>
constexpr double shortest_vector = std::max<double>(std::numeric_limits<T>::min(), 1e-150);

// Sums over elements are formed in so many lanes, element i in lane i % lanes, and the lanes are
// folded, neighbours first: lane += lane + width for width 1, 2, ..., lanes / 2.
constexpr std::int64_t orthonormal_lanes = 1024;

// Makes vectors orthonormal in place, the first one first, in float64 and in a fixed order, so that
// equal input gives equal bits on every machine. Each vector is freed of all those before it at
// once, and that twice, which is enough (Giraud, Langou, Rozloznik 2005).
class Orthonormalizer {
 public:
  // Fills the `length` elements of vector k anew.
  using Redraw = std::function<void(std::int64_t k, double* elements)>;

  // A vector of which no more than the share `tolerance` is left, or that is shorter than
  // `shortest_vector`, is dropped: it becomes zero, or, given `redraw`, is drawn anew (and becomes
  // zero where that does not help). T is float or double.
  template <typename T>
  void run(const VectorLayout& layout, double tolerance, T* values, const Redraw& redraw);

 private:
  bool free_of_earlier(std::int64_t k, std::int64_t length, double tolerance, double shortest);

  std::vector<double> vectors_;  // one after another
  std::vector<double> shares_;
};

extern template void Orthonormalizer::run<float>(const VectorLayout&, double, float*,
                                                 const Redraw&);
extern template void Orthonormalizer::run<double>(const VectorLayout&, double, double*,
                                                  const Redraw&);

}  // namespace thinwire
