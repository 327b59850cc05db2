// A reducer's state as flat vectors, and sums of them over ranks that are threads.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <mutex>
#include <string>

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "collectives/compression/reducer/make_reducer.h"

namespace thinwire::testing {

// Each kind of state as one flat float64 vector of the bucket's size, and zero where there is none;
// factors, weights and rates are left out.
class Flat final : public StateVisitor {
 public:
  Flat(const Bucket& bucket, GradientReducer& reducer) : bucket_(bucket) {
    reducer.visit(bucket, *this);
  }
  at::Tensor operator[](const std::string& kind) {
    at::Tensor& flat = kinds_[kind];
    if (!flat.defined()) flat = at::zeros({bucket_.numel()}, at::kDouble);
    return flat;
  }

 private:
  void tensor(const StateEntry& entry) override {
    const auto slash = entry.name.find('/');
    const std::string kind = entry.name.substr(0, slash);
    if (kind == "eta" || kind == "factor") return;
    for (const auto& slice : bucket_.slices) {
      if (slice.name != entry.name.substr(slash + 1)) continue;
      (*this)[kind]
          .narrow(0, slice.offset + entry.begin, entry.tensor.numel())
          .copy_(entry.tensor.flatten());
    }
  }
  void counter(const std::string&, std::int64_t&) override {}

  const Bucket& bucket_;
  std::map<std::string, at::Tensor> kinds_;
};

// Adds what ranks say.
class Sum {
 public:
  void add(const at::Tensor& part) {
    const std::lock_guard lock(mutex_);
    total_ = total_.defined() ? total_ + part : part.clone();
  }
  const at::Tensor& total() const { return total_; }

 private:
  std::mutex mutex_;
  at::Tensor total_;
};

inline double largest(const at::Tensor& values) {
  return values.abs().max().item<double>();
}

}  // namespace thinwire::testing
