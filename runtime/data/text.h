// Text, character by character.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/data/dataset.h"

namespace thinwire {

// A text's characters as numbers. A character is a byte: every text has at most 256 of them, and
// none is lost, in UTF-8 as in any 8-bit encoding.
struct Characters {
  std::vector<std::uint8_t> vocabulary;  // the bytes that occur, ascending
  std::vector<std::uint8_t> tokens;      // each character's place in it
};

// Throws DataError with `name` for bytes that are no text because some are NUL, and for a text of
// fewer than two different characters, in which there is nothing to predict.
Characters encode_text(std::span<const std::uint8_t> text, const std::string& name);

// Windows of a text, with the next character at every place as target. Sample i holds the
// characters [i * context, (i + 1) * context) of its range, and as targets the characters one place
// further on. So each character but the first is predicted once. The characters at the end that do
// not fill a window are unused.
class TextDataset : public Dataset {
 public:
  // The characters [begin, end) of `text`, at least context + 1.
  TextDataset(std::shared_ptr<const Characters> text, std::int64_t begin, std::int64_t end,
              std::int64_t context);

  std::int64_t size() const override { return size_; }
  // Size of the vocabulary.
  std::int64_t classes() const override { return std::ssize(text_->vocabulary); }
  std::vector<std::int64_t> sample_shape() const override { return {context_}; }
  std::int64_t targets_per_sample() const override { return context_; }
  // On the CPU, input and target int64 [n, context].
  Batch batch(std::span<const std::int64_t> indices, at::ScalarType dtype) const override;
  std::uint64_t fingerprint() const override { return fingerprint_; }

 private:
  std::shared_ptr<const Characters> text_;
  std::int64_t begin_;
  std::int64_t context_;
  std::int64_t size_;
  std::uint64_t fingerprint_;
};

// Reads any text file, plain or gzip. The last tenth of it is for testing. `context`: characters
// per sample, at least 2. Throws DataError where the file is missing, damaged, no text, or too
// short for one sample to train on and one to test; IoError where it cannot be read.
DataSplit load_text(const std::filesystem::path& file, std::int64_t context);

// The Jargon File (1.7 MB of English, public domain), from Debian's package jargon-text.
std::filesystem::path default_text();

}  // namespace thinwire
