#include "runtime/step/words.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <cstring>

#include "collectives/agreement.h"
#include "collectives/base/error.h"

namespace thinwire {
namespace {

constexpr std::size_t kBits = 64;
constexpr std::size_t kEndBits = 3;

// Plain structs travel as 64-bit integers.
template <typename Word>
std::vector<Word> all_gather(Communicator& communicator, const Word& mine) {
  static_assert(sizeof(Word) % sizeof(std::int64_t) == 0);
  constexpr auto count = static_cast<std::int64_t>(sizeof(Word) / sizeof(std::int64_t));
  at::Tensor own = at::empty({count}, at::kLong);
  std::memcpy(own.data_ptr(), &mine, sizeof mine);
  at::Tensor all = at::empty({count * communicator.size()}, at::kLong);
  communicator.all_gather(all, own, {})->wait();
  std::vector<Word> words(static_cast<std::size_t>(communicator.size()));
  std::memcpy(words.data(), all.const_data_ptr(), all.nbytes());
  return words;
}

}  // namespace

std::vector<OpeningWord> exchange(Communicator& communicator, const OpeningWord& mine) {
  return all_gather(communicator, mine);
}

std::vector<SamplesWord> exchange(Communicator& communicator, const SamplesWord& mine) {
  return all_gather(communicator, mine);
}

// The end, then one bit for each slice.
ClosingExchange::ClosingExchange(Communicator& communicator, const ClosingWord& mine)
    : slices_(mine.used.size()),
      words_(static_cast<std::int64_t>((kEndBits + slices_ + kBits - 1) / kBits)),
      mine_(at::zeros({words_}, at::kLong)),
      all_(at::empty({words_ * communicator.size()}, at::kLong)) {
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(words_));
  bits[0] = static_cast<std::uint64_t>(mine.end);
  for (std::size_t i = 0; i < slices_; ++i) {
    const std::size_t place = kEndBits + i;
    if (mine.used[i]) bits[place / kBits] |= std::uint64_t{1} << place % kBits;
  }
  std::memcpy(mine_.data_ptr(), bits.data(), mine_.nbytes());
  work_ = communicator.all_gather(all_, mine_, {});
}

std::vector<ClosingWord> ClosingExchange::wait() {
  work_->wait();
  std::vector<std::uint64_t> bits(static_cast<std::size_t>(all_.numel()));
  std::memcpy(bits.data(), all_.const_data_ptr(), all_.nbytes());
  std::vector<ClosingWord> result;
  for (auto word = bits.begin(); word != bits.end(); word += words_) {
    ClosingWord& of_rank = result.emplace_back();
    of_rank.end = static_cast<StepEnd>(*word & ((std::uint64_t{1} << kEndBits) - 1));
    for (std::size_t i = 0; i < slices_; ++i) {
      const std::size_t place = kEndBits + i;
      of_rank.used.push_back(word[static_cast<std::ptrdiff_t>(place / kBits)] >> place % kBits & 1);
    }
  }
  return result;
}

AgreedWeight agree(const std::vector<SamplesWord>& words, int rank) {
  AgreedWeight agreed;
  std::int64_t total = 0;
  std::vector<int> by_samples, equal;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i].weighting == Weighting::by_samples) by_samples.push_back(static_cast<int>(i));
    if (words[i].weighting == Weighting::equal) equal.push_back(static_cast<int>(i));
    total += words[i].samples;
  }
  if (!by_samples.empty() && !equal.empty()) {
    throw AgreedError(ExitCode::usage,
                      fmt::format("{} called finish(samples) and {} finish(); call the same on "
                                  "every rank, finish(0) where there are no samples",
                                  rank_list(by_samples), rank_list(equal)));
  }
  if (!equal.empty()) agreed.weighting = Weighting::equal;
  if (by_samples.empty()) return agreed;
  agreed.weighting = Weighting::by_samples;
  if (total > 0) {
    agreed.factor = static_cast<double>(words[static_cast<std::size_t>(rank)].samples) *
                    static_cast<double>(words.size()) / static_cast<double>(total);
  }
  return agreed;
}

}  // namespace thinwire
