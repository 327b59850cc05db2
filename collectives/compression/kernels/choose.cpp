#include "collectives/compression/kernels/choose.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/compression/codings/list.h"
#include "collectives/compression/kernels/host.h"

namespace thinwire {
namespace {

using Form = NamedKernels<float>;

constexpr int kRounds = 5;
constexpr double kFaster = 1.0 / 30;
constexpr std::int64_t kBlock = 1024;

// Those of the best vectors: others are there for machines without these.
std::vector<Form> forms_to_compare() {
  std::vector<Form> forms = host_kernels_by_form<float>();
  const std::string best = forms.front().form;
  std::erase_if(forms, [&](const Form& form) { return !form.form.starts_with(best); });
  return forms;
}

using Memory = std::unique_ptr<float[], decltype(&std::free)>;
// Of `numel` small numbers, in huge pages as libtorch's large tensors are.
Memory memory(std::int64_t numel) {
  constexpr std::size_t page = 2 << 20;
  const std::size_t bytes =
      (static_cast<std::size_t>(numel) * sizeof(float) + page - 1) / page * page;
  Memory all(static_cast<float*>(std::aligned_alloc(page, bytes)), &std::free);
  if (all == nullptr) throw std::bad_alloc();
  madvise(all.get(), bytes, MADV_HUGEPAGE);  // may be refused
  for (std::int64_t i = 0; i < numel; ++i) {
    all[static_cast<std::size_t>(i)] = static_cast<float>(i % 61 - 30) / 64;
  }
  return all;
}

// A gradient, its residual and its message; the kernels run over them as in a 1-bit exchange.
class Trial {
 public:
  explicit Trial(std::int64_t bytes)
      : numel_(bytes / (2 * static_cast<std::int64_t>(sizeof(float))) / kBlock * kBlock),
        gradient_(memory(numel_)),
        error_(memory(numel_)) {
    const Format format = format_of(Sign{}, kBlock);
    std::int64_t payload = 0;
    for (std::int64_t begin = 0; begin < numel_; begin += kBlock) {
      blocks_.push_back({.begin = begin, .payload = payload, .count = kBlock, .format = format});
      payload += payload_bytes<float>(format, kBlock);
    }
    payload_.resize(static_cast<std::size_t>(payload));
    reply_.resize(payload_.size());
    sent_.resize(blocks_.size());
    sent_next_.resize(blocks_.size());
  }

  void encode(const Kernels<float>& kernels) {
    kernels.encode({.blocks = blocks_.data(),
                    .block_count = std::ssize(blocks_),
                    .gradient = gradient_.get(),
                    .residual = residual(),
                    .payload = payload_.data(),
                    .sent_next = sent_next_.data()},
                   nullptr);
  }
  void owner_reduce(const Kernels<float>& kernels) {
    kernels.owner_reduce({.blocks = blocks_.data(),
                          .block_count = std::ssize(blocks_),
                          .arrived = payload_.data(),
                          .stride = 0,
                          .ranks = 2,
                          .residual = residual(),
                          .owner_next = gradient_.get(),
                          .reply = reply_.data(),
                          .sent_next = sent_next_.data()},
                         nullptr);
  }
  void decode(const Kernels<float>& kernels) {
    kernels.decode({.blocks = blocks_.data(),
                    .block_count = std::ssize(blocks_),
                    .payload = payload_.data(),
                    .into = gradient_.get()},
                   nullptr);
  }
  std::int64_t numel() const { return numel_; }

 private:
  Residual<float> residual() const { return {.error = error_.get(), .sent = sent_.data()}; }

  std::int64_t numel_;
  Memory gradient_;
  Memory error_;
  std::vector<Block> blocks_;
  std::vector<char> payload_, reply_;
  std::vector<float> sent_, sent_next_;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

KernelChoice compare(const std::string& kernel, const std::vector<Form>& forms, std::int64_t numel,
                     const std::function<void(const Kernels<float>&)>& run) {
  std::vector<std::vector<double>> seconds(forms.size());
  // One more, at the start, does not count: memory is there after it.
  for (int round = 0; round < kRounds + 1; ++round) {
    for (std::size_t f = 0; f < forms.size(); ++f) {
      const auto begin = std::chrono::steady_clock::now();
      run(forms[f].kernels);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      if (round > 0) seconds[f].push_back(taken.count());
    }
  }
  KernelChoice choice{kernel, forms.front().form, {}};
  double best = median(seconds.front()) * (1 - kFaster);
  for (std::size_t f = 0; f < forms.size(); ++f) {
    const double time = median(seconds[f]);
    choice.times.push_back({forms[f].form, 1e9 * time / static_cast<double>(numel)});
    if (f == 0 || time >= best) continue;
    best = time;
    choice.form = forms[f].form;
  }
  return choice;
}

}  // namespace

ChosenKernels choose_host_kernels(std::int64_t bytes) {
  const std::vector<Form> forms = forms_to_compare();
  ChosenKernels chosen{forms.front().kernels, {}};
  if (forms.size() == 1) return chosen;
  Trial trial(bytes);
  const auto choose = [&](const std::string& kernel, auto run) -> const Kernels<float>& {
    chosen.choices.push_back(compare(kernel, forms, trial.numel(), run));
    return std::ranges::find(forms, chosen.choices.back().form, &Form::form)->kernels;
  };
  using K = Kernels<float>;
  const K& encode = choose("encode", [&](const K& kernels) { trial.encode(kernels); });
  const K& reduce = choose("owner's reduction", [&](const K& k) { trial.owner_reduce(k); });
  const K& decode = choose("decode", [&](const K& kernels) { trial.decode(kernels); });
  // What works in place stores as encoding does.
  chosen.kernels = encode;
  chosen.kernels.owner_reduce = reduce.owner_reduce;
  chosen.kernels.decode = decode.decode;
  return chosen;
}

ChosenKernels host_kernels_of_form(const std::string& form) {
  const std::vector<Form> forms = host_kernels_by_form<float>();
  const auto found = std::ranges::find(forms, form, &Form::form);
  if (found != forms.end()) return {found->kernels, {}};
  std::vector<std::string> names;
  for (const Form& each : forms) names.push_back("'" + each.form + "'");
  throw UsageError(fmt::format("this machine has no kernels '{}'; give auto or one of {}",
                               printable(form), fmt::join(names, ", ")));
}

}  // namespace thinwire
