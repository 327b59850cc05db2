#include "runtime/data/text.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "runtime/data/file_bytes.h"

namespace thinwire {
namespace {

constexpr const char* kReplace =
    "give a text file as text:PATH, or 'text' alone for the one that Debian's package jargon-text "
    "installs in /usr/share/doc";

}  // namespace

Characters encode_text(std::span<const std::uint8_t> text, const std::string& name) {
  const auto nul = std::find(text.begin(), text.end(), std::uint8_t{0});
  if (nul != text.end()) {
    throw DataError(fmt::format("'{}' is no text: byte {} of it is zero; {}", name,
                                nul - text.begin(), kReplace));
  }
  std::array<bool, 256> occurs{};
  for (const std::uint8_t byte : text) occurs[byte] = true;

  Characters characters;
  std::array<std::uint8_t, 256> place{};
  for (std::size_t byte = 0; byte < occurs.size(); ++byte) {
    if (!occurs[byte]) continue;
    place[byte] = static_cast<std::uint8_t>(characters.vocabulary.size());
    characters.vocabulary.push_back(static_cast<std::uint8_t>(byte));
  }
  if (characters.vocabulary.size() < 2) {
    throw DataError(fmt::format("'{}' has {} different characters, at least 2 are needed; {}", name,
                                characters.vocabulary.size(), kReplace));
  }
  characters.tokens.reserve(text.size());
  for (const std::uint8_t byte : text) characters.tokens.push_back(place[byte]);
  return characters;
}

TextDataset::TextDataset(std::shared_ptr<const Characters> text, std::int64_t begin,
                         std::int64_t end, std::int64_t context)
    : text_(std::move(text)), begin_(begin), context_(context) {
  check(begin >= 0 && end <= std::ssize(text_->tokens), "a range within the text");
  check(context >= 2 && end - begin > context, "a range with one sample at least");
  // The last window needs one character after it.
  size_ = (end - begin - 1) / context;
  fingerprint_ = hash64(&context_, sizeof(context_));
  fingerprint_ = hash64(text_->vocabulary.data(), text_->vocabulary.size(), fingerprint_);
  fingerprint_ =
      hash64(text_->tokens.data() + begin, static_cast<std::size_t>(end - begin), fingerprint_);
}

Batch TextDataset::batch(std::span<const std::int64_t> indices, at::ScalarType) const {
  const std::int64_t n = std::ssize(indices);
  Batch batch{at::empty({n, context_}, at::kLong), at::empty({n, context_}, at::kLong)};
  std::int64_t* input = batch.input.mutable_data_ptr<std::int64_t>();
  std::int64_t* target = batch.target.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t index : indices) {
    check(index >= 0 && index < size_, "a sample's index is within the data set");
    const std::uint8_t* from = text_->tokens.data() + begin_ + index * context_;
    input = std::copy_n(from, context_, input);
    target = std::copy_n(from + 1, context_, target);
  }
  return batch;
}

DataSplit load_text(const std::filesystem::path& file, std::int64_t context) {
  const auto bytes = read_file_bytes(file, kReplace);
  // First whether it is long enough: an empty file is short, rather than poor in characters.
  const std::int64_t length = std::ssize(bytes);
  const std::int64_t split = length - length / 10;
  if (length - split <= context) {
    throw DataError(
        fmt::format("'{}' has {} characters; its last tenth must be longer than the context of {}: "
                    "give a longer text, or a shorter context as text:PATH,context=N",
                    file.string(), length, context));
  }
  const auto text = std::make_shared<const Characters>(encode_text(bytes, file.string()));
  return {std::make_shared<TextDataset>(text, 0, split, context),
          std::make_shared<TextDataset>(text, split, length, context)};
}

std::filesystem::path default_text() {
  return "/usr/share/doc/jargon-text/jargon.txt.gz";
}

}  // namespace thinwire
