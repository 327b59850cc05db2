// The forms of the host's kernels, and the choice among them.
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "collectives/base/error.h"
#include "collectives/compression/codings/list.h"
#include "collectives/compression/kernels/choose.h"
#include "collectives/compression/kernels/host.h"

namespace thinwire {
namespace {

TEST(KernelForms, HaveNamesOfTheirOwnAndTheDefaultComesFirst) {
  const auto forms = host_kernels_by_form<float>();
  std::set<std::string> names;
  for (const auto& form : forms) names.insert(form.form);
  EXPECT_EQ(names.size(), forms.size());
  EXPECT_EQ(host_kernels<float>().decode, forms.front().kernels.decode);
  EXPECT_EQ(host_kernels<float>().encode, forms.front().kernels.encode);
}

// Into memory that is aligned for any vectors, and into memory beside it.
template <typename T, typename C>
void decode_in_every_form(const C& options, std::int32_t size) {
  constexpr std::int64_t kCount = 5000;
  std::vector<Block> blocks;
  std::int64_t bytes = 0;
  for (std::int64_t begin = 0; begin < kCount; begin += size) {
    const auto count = static_cast<std::int32_t>(std::min<std::int64_t>(size, kCount - begin));
    const Format format = format_of(options, count);
    blocks.push_back({.begin = begin, .payload = bytes, .count = count, .format = format});
    bytes += payload_bytes<T>(format, count);
  }
  std::vector<T> values(kCount);
  for (std::int64_t i = 0; i < kCount; ++i) {
    values[static_cast<std::size_t>(i)] = static_cast<T>((i * 37) % 101 - 50) / 32;
  }
  std::vector<char> payload(static_cast<std::size_t>(bytes));
  host_kernels<T>().encode({.blocks = blocks.data(),
                            .block_count = std::ssize(blocks),
                            .gradient = values.data(),
                            .residual = {},
                            .payload = payload.data()},
                           nullptr);
  at::Tensor expected;
  for (const auto& [form, kernels] : host_kernels_by_form<T>()) {
    for (const std::int64_t shift : {0, 1}) {
      // libtorch aligns to 64 bytes.
      at::Tensor into = at::empty({kCount + 1}, c10::CppTypeToScalarType<T>::value);
      kernels.decode({.blocks = blocks.data(),
                      .block_count = std::ssize(blocks),
                      .payload = payload.data(),
                      .into = into.data_ptr<T>() + shift},
                     nullptr);
      const at::Tensor decoded = into.narrow(0, shift, kCount);
      if (!expected.defined()) expected = decoded.clone();
      EXPECT_TRUE(decoded.equal(expected)) << form << ", shifted by " << shift;
    }
  }
}

TEST(KernelForms, DecodeTheSame) {
  decode_in_every_form<float>(Sign{}, 1024);
  decode_in_every_form<double>(Sign{}, 1024);
  decode_in_every_form<float>(Quantize{.bits = 4}, 512);
  decode_in_every_form<float>(Cast{Half::bf16}, 1000);
  decode_in_every_form<float>(TopK{}, 512);
  decode_in_every_form<float>(Uncompressed{}, 1024);
  decode_in_every_form<double>(Uncompressed{}, 1024);
}

TEST(KernelForms, AreChosenByWhatTheyTake) {
  const ChosenKernels chosen = choose_host_kernels(1 << 20);
  const auto forms = host_kernels_by_form<float>();
  ASSERT_EQ(chosen.choices.size(), 3U);
  for (const KernelChoice& choice : chosen.choices) {
    double best = choice.times.front().nanoseconds;
    double of_chosen = 0;
    for (const FormTime& time : choice.times) {
      EXPECT_GT(time.nanoseconds, 0) << choice.kernel << " " << time.form;
      best = std::min(best, time.nanoseconds);
      if (time.form == choice.form) of_chosen = time.nanoseconds;
    }
    EXPECT_GT(of_chosen, 0) << choice.kernel;
    EXPECT_LE(of_chosen, best * 1.04) << "the first, or the fastest";
  }
  const auto of = [&](const std::string& name) {
    return std::ranges::find(forms, name, &NamedKernels<float>::form)->kernels;
  };
  EXPECT_EQ(chosen.kernels.encode, of(chosen.choices[0].form).encode);
  EXPECT_EQ(chosen.kernels.owner_reduce, of(chosen.choices[1].form).owner_reduce);
  EXPECT_EQ(chosen.kernels.decode, of(chosen.choices[2].form).decode);
}

TEST(KernelForms, CanBeNamed) {
  for (const auto& form : host_kernels_by_form<float>()) {
    EXPECT_EQ(host_kernels_of_form(form.form).kernels.decode, form.kernels.decode);
  }
  try {
    host_kernels_of_form("avx1024");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("plain"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace thinwire
