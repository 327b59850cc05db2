// Gram and Schmidt's process for a few long vectors.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace thinwire {

// Where the elements of `count` vectors lie: element i of vector k at k * vector + i * element.
struct VectorLayout {
  std::int64_t count = 0;
  std::int64_t length = 0;
  std::int64_t vector = 0;
  std::int64_t element = 0;
};

// Makes vectors orthonormal in place, the first one first, in float64 and in a fixed order, so that
// equal input gives equal bits on every machine. Each vector is freed of those before it twice,
// which is enough (Giraud, Langou, Rozloznik 2005).
class Orthonormalizer {
 public:
  // A vector of which no more than the share `tolerance` is left, or too short to be told from
  // zero, is dropped.
  explicit Orthonormalizer(double tolerance) : tolerance_(tolerance) {}

  // Fills the `length` elements of vector k anew.
  using Redraw = std::function<void(std::int64_t k, double* elements)>;

  // Vectors that are dropped become zero, or, given `redraw`, are drawn anew (and become zero where
  // that does not help). T is float or double.
  template <typename T>
  void run(const VectorLayout& layout, T* values, const Redraw& redraw);

 private:
  bool free_of_earlier(std::int64_t k, std::int64_t length, double shortest);

  double tolerance_;
  std::vector<double> vectors_;  // one after another
};

extern template void Orthonormalizer::run<float>(const VectorLayout&, float*, const Redraw&);
extern template void Orthonormalizer::run<double>(const VectorLayout&, double*, const Redraw&);

}  // namespace thinwire
