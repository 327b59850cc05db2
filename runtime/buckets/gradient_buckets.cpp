#include "runtime/buckets/gradient_buckets.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>
#include <tuple>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

constexpr std::int64_t kAlignment = 64;  // bytes

bool is_16_bit(at::ScalarType dtype) {
  return dtype == at::kBFloat16 || dtype == at::kHalf;
}

at::ScalarType gradient_dtype(const at::Tensor& parameter) {
  return is_16_bit(parameter.scalar_type()) ? at::kFloat : parameter.scalar_type();
}

// A tensor over part of a flat buffer that autograd does not know as a view of it: optimizers may
// zero it, detach it and drop it like any gradient.
at::Tensor alias(const at::Tensor& flat, std::int64_t offset, const at::Tensor& like) {
  at::Tensor tensor = at::empty({0}, flat.options());
  tensor.set_(flat.storage(), flat.storage_offset() + offset, like.sizes(), like.strides());
  return tensor;
}

void check_parameter(const Parameter& parameter) {
  const auto& [name, tensor] = parameter;
  if (!tensor.defined() || !tensor.is_leaf()) {
    throw UsageError(
        fmt::format("parameter {} is {}; give the tensors that the model registers", name,
                    tensor.defined() ? "the result of an operation, not a leaf" : "undefined"));
  }
  const auto dtype = tensor.scalar_type();
  if (dtype != at::kFloat && dtype != at::kDouble && !is_16_bit(dtype)) {
    throw UsageError(fmt::format(
        "parameter {} is of dtype {}, of which no gradients travel; use float, double, bfloat16 or "
        "half (a complex one as two real ones)",
        name, toString(dtype)));
  }
  if (dtype == at::kDouble && !tensor.is_cpu()) {
    throw UsageError(
        fmt::format("parameter {} is of float64 and on {}, where only float32, bfloat16 and half "
                    "are trained; keep the model on the CPU, or make it float32",
                    name, tensor.device().str()));
  }
  if (!tensor.is_non_overlapping_and_dense()) {
    throw UsageError(fmt::format(
        "parameter {} is no dense block of memory (it is expanded or a slice); give it memory of "
        "its own, as tensor.clone() does",
        name));
  }
}

}  // namespace

void GradientBuckets::require_possible(const std::vector<Parameter>& parameters) {
  if (parameters.empty()) {
    throw UsageError("there are no parameters to train; give a module that has some");
  }
  std::set<std::string> names;
  std::set<const void*> tensors;
  for (const auto& parameter : parameters) {
    check_parameter(parameter);
    if (!names.insert(parameter.name).second) {
      throw UsageError(
          fmt::format("two parameters are called {}; give each a name of its own", parameter.name));
    }
    // A tied weight in two slots would be reduced in one and stepped in the other.
    if (!tensors.insert(parameter.tensor.unsafeGetTensorImpl()).second) {
      throw UsageError(fmt::format(
          "parameter {} is another name of one before it; give a tied parameter once, as "
          "parameters_of() does",
          parameter.name));
    }
  }
}

GradientBuckets::GradientBuckets(std::vector<Parameter> parameters, BucketOptions options)
    : parameters_(std::move(parameters)),
      places_(parameters_.size()),
      aliases_(parameters_.size()) {
  require_possible(parameters_);
  const c10::NoGradGuard no_grad;
  // Backward reaches the last parameter first, so buckets fill from the end.
  struct Draft {
    std::vector<std::size_t> members;
    std::int64_t numel = 0;
    bool open = true;
  };
  using Kind = std::tuple<at::ScalarType, at::Device>;
  const auto kind_of = [&](std::size_t i) {
    return Kind{parameters_[i].tensor.scalar_type(), parameters_[i].tensor.device()};
  };
  std::vector<Draft> drafts;
  for (std::size_t i = parameters_.size(); i-- > 0;) {
    const auto width =
        static_cast<std::int64_t>(c10::elementSize(gradient_dtype(parameters_[i].tensor)));
    auto draft = std::find_if(drafts.begin(), drafts.end(), [&](const Draft& candidate) {
      return candidate.open && kind_of(candidate.members.front()) == kind_of(i);
    });
    if (draft == drafts.end()) draft = drafts.insert(drafts.end(), Draft{});
    draft->members.push_back(i);
    const std::int64_t unit = kAlignment / width;
    draft->numel += (parameters_[i].tensor.numel() + unit - 1) / unit * unit;
    const std::int64_t limit =
        draft == drafts.begin() ? options.first_bucket_bytes : options.bucket_bytes;
    if (draft->numel * width >= limit) draft->open = false;
  }
  // In the order in which backward completes them.
  std::stable_sort(drafts.begin(), drafts.end(), [](const Draft& a, const Draft& b) {
    return a.members.back() > b.members.back();
  });

  for (const Draft& draft : drafts) {
    const at::Tensor& first = parameters_[draft.members.front()].tensor;
    Bucket bucket;
    bucket.index = static_cast<int>(buckets_.size());
    bucket.gradient = at::zeros({draft.numel}, first.options().dtype(gradient_dtype(first)));
    if (options.weights == WeightStorage::flattened) {
      bucket.weights = at::zeros({draft.numel}, first.options().requires_grad(false));
    }
    std::int64_t offset = 0;
    for (const std::size_t i : draft.members) {
      at::Tensor& tensor = parameters_[i].tensor;
      places_[i] = {buckets_.size(), bucket.slices.size()};
      Slice slice;
      slice.name = parameters_[i].name;
      slice.shape = tensor.sizes().vec();
      slice.offset = offset;
      slice.numel = tensor.numel();
      if (bucket.weights.defined()) {
        at::Tensor place = alias(bucket.weights, offset, tensor);
        place.copy_(tensor);
        tensor.set_data(place);
      }
      if (is_16_bit(tensor.scalar_type())) tensor.set_grad_dtype(at::kFloat);
      const std::int64_t unit =
          kAlignment / static_cast<std::int64_t>(bucket.gradient.element_size());
      offset += (slice.numel + unit - 1) / unit * unit;
      bucket.slices.push_back(std::move(slice));
    }
    buckets_.push_back(std::move(bucket));
  }
}

const Slice& GradientBuckets::slice(std::size_t parameter) const {
  const Place where = places_[parameter];
  return buckets_[where.bucket].slices[where.slice];
}

void GradientBuckets::attach(std::size_t parameter) {
  const Bucket& bucket = buckets_[places_[parameter].bucket];
  auto& aliases = aliases_[parameter];
  const void* buffer = bucket.gradient.const_data_ptr();
  auto found = aliases.find(buffer);
  if (found == aliases.end()) {
    // At most three buffers take turns; more than that means that old ones are gone.
    if (aliases.size() >= 3) aliases.clear();
    found = aliases.emplace(buffer, make_alias(parameter)).first;
  }
  parameters_[parameter].tensor.mutable_grad() = found->second;
}

bool GradientBuckets::attached(std::size_t parameter) const {
  const at::Tensor& tensor = parameters_[parameter].tensor;
  const at::Tensor& gradient = tensor.grad();
  if (!gradient.defined() || gradient.is_sparse() || gradient.sizes() != tensor.sizes() ||
      gradient.strides() != tensor.strides()) {
    return false;
  }
  const Bucket& bucket = buckets_[places_[parameter].bucket];
  const auto* begin = static_cast<const char*>(bucket.gradient.const_data_ptr());
  const std::int64_t offset =
      slice(parameter).offset * static_cast<std::int64_t>(bucket.gradient.element_size());
  return tensor.numel() == 0 || gradient.const_data_ptr() == begin + offset;
}

void GradientBuckets::detach(std::size_t parameter) {
  parameters_[parameter].tensor.mutable_grad() = at::Tensor();
}

void GradientBuckets::zero(std::size_t parameter) {
  const Bucket& bucket = buckets_[places_[parameter].bucket];
  const Slice& where = slice(parameter);
  bucket.gradient.narrow(0, where.offset, where.numel).zero_();
}

at::Tensor GradientBuckets::make_alias(std::size_t parameter) const {
  const Bucket& bucket = buckets_[places_[parameter].bucket];
  return alias(bucket.gradient, slice(parameter).offset, parameters_[parameter].tensor);
}

}  // namespace thinwire
