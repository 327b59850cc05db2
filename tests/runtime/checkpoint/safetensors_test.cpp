#include "runtime/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

// A file with this header text and these data, by the format's description.
std::string file_with(const std::string& header, const std::string& data) {
  const std::uint64_t size = header.size();
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(size >> (8 * i));
  return bytes + header + data;
}

json header_of(const std::string& bytes) {
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.data(), 8);
  return json::parse(bytes.substr(8, size));
}

std::string refusal(const std::string& bytes) {
  try {
    read_safetensors(bytes, "dir/file.safetensors");
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("dir/file.safetensors"), HasSubstr("; ")));
    return error.what();
  }
  return "it was accepted";
}

std::string one_tensor(const std::string& description, const std::string& data) {
  return file_with(R"({"t":)" + description + "}", data);
}

TEST(Safetensors, RoundTripOfEveryDtypeAndShape) {
  std::vector<NamedTensor> tensors;
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                           at::kShort, at::kChar, at::kByte, at::kBool}) {
    const std::string name = c10::toString(dtype);
    tensors.push_back({name, torch::arange(7).to(dtype)});
    tensors.push_back({name + ".scalar", torch::tensor(3).to(dtype)});
    tensors.push_back({name + ".empty", torch::empty({2, 0, 3}, dtype)});
    tensors.push_back({name + ".transposed", torch::arange(6).view({2, 3}).to(dtype).t()});
  }
  tensors.push_back({"leaf", torch::ones({2}).requires_grad_(true)});
  const std::map<std::string, std::string> metadata{{"key", "value \"quoted\" \xc3\xa9"}};
  const Safetensors read = read_safetensors(write_safetensors(tensors, metadata), "file");
  EXPECT_EQ(read.metadata, metadata);
  ASSERT_EQ(read.tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor& other = read.tensors.at(name);
    EXPECT_EQ(other.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(other.sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(other.equal(tensor)) << name;
  }
}

TEST(Safetensors, BitsOfNansAndNegativeZerosStay) {
  const at::Tensor bits = torch::tensor({0x7fc00001, -2147483647 - 1, 1, 0x7f800000}, torch::kInt);
  const auto read = read_safetensors(write_safetensors({{"t", bits.view(at::kFloat)}}, {}), "file");
  EXPECT_TRUE(read.tensors.at("t").view(at::kInt).equal(bits));
}

TEST(Safetensors, NothingAtAllIsAFileToo) {
  const auto read = read_safetensors(write_safetensors({}, {}), "file");
  EXPECT_TRUE(read.tensors.empty());
  EXPECT_TRUE(read.metadata.empty());
}

TEST(Safetensors, LayoutIsThatOfTheFormat) {
  const std::string bytes = write_safetensors(
      {{"A", torch::tensor({1, 2}, torch::kChar)}, {"B", torch::tensor({1.0F})}}, {});
  const json header = header_of(bytes);
  EXPECT_EQ(header["B"]["dtype"], "F32");
  EXPECT_EQ(header["B"]["data_offsets"], json({0, 4}));
  EXPECT_EQ(header["A"]["shape"], json::array({2}));
  EXPECT_EQ(header["A"]["data_offsets"], json({4, 6}));
  EXPECT_EQ(header["__metadata__"]["xxh3:B"].get<std::string>().size(), 16U);
  EXPECT_EQ(bytes[8], '{');
  EXPECT_EQ((bytes.size() - 6) % 8, 0U) << "the data are not aligned";
  EXPECT_EQ(bytes.substr(bytes.size() - 6), std::string("\0\0\x80\x3f\1\2", 6));
}

TEST(Safetensors, WriterRefusesWhatTheFormatLacks) {
  const at::Tensor t = torch::ones({1});
  EXPECT_THROW(write_safetensors({{"t", t.to(at::kComplexFloat)}}, {}), Bug);
  EXPECT_THROW(write_safetensors({{"t", t}, {"t", t}}, {}), Bug);
  EXPECT_THROW(write_safetensors({{"__metadata__", t}}, {}), Bug);
}

TEST(Safetensors, ReadsFilesWithoutChecksumsAndWithUnalignedData) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("b":{"dtype":"I16","shape":[],"data_offsets":[1,3]}}  )";
  const auto read = read_safetensors(file_with(header, std::string("\x05\x01\x02", 3)), "file");
  EXPECT_EQ(read.tensors.at("a").item<int>(), 5);
  EXPECT_EQ(read.tensors.at("b").item<int>(), 0x0201);
}

TEST(Safetensors, EveryFlippedDataByteIsNoticedAndTheTensorNamed) {
  const std::string good = write_safetensors(
      {{"first", torch::arange(5, torch::kFloat)}, {"second", torch::arange(9, torch::kByte)}}, {});
  for (std::size_t back = 1; back <= 29; ++back) {
    std::string bad = good;
    bad[bad.size() - back] = static_cast<char>(bad[bad.size() - back] ^ 16);
    EXPECT_THAT(refusal(bad),
                AllOf(HasSubstr(back <= 9 ? "'second'" : "'first'"), HasSubstr("checksum")));
  }
}

TEST(Safetensors, EveryTruncationAndAnyExtraByteIsRefused) {
  const std::string good = write_safetensors({{"t", torch::arange(3, torch::kFloat)}}, {});
  ASSERT_EQ(refusal(good), "it was accepted");
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_NE(refusal(good.substr(0, size)), "it was accepted") << size;
  }
  EXPECT_THAT(refusal(good + '\0'), HasSubstr("1 bytes at its end belong to no tensor"));
}

TEST(Safetensors, HostileHeaderLengths) {
  for (const std::uint64_t length :
       {std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{7}, std::uint64_t{3}}) {
    std::string bytes(10, '\0');
    std::memcpy(bytes.data(), &length, 8);
    EXPECT_THAT(refusal(bytes), HasSubstr("header would have " + std::to_string(length)));
  }
  EXPECT_THAT(refusal(std::string(8, '\0')), HasSubstr("JSON"));
}

TEST(Safetensors, HostileJson) {
  EXPECT_THAT(refusal(file_with("{", "")), HasSubstr("not well-formed JSON"));
  EXPECT_THAT(refusal(file_with("{} x", "")), HasSubstr("not well-formed JSON"));
  EXPECT_THAT(refusal(file_with("[]", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(refusal(file_with(std::string(100000, '['), "")), HasSubstr("JSON"));
  EXPECT_THAT(refusal(file_with("{\"\xff\":1}", "")), HasSubstr("JSON"));
  const std::string t = R"("t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_THAT(refusal(file_with("{" + t + "," + t + "}", "x")), HasSubstr("'t' occurs twice"));
  EXPECT_THAT(refusal(file_with(R"({"__metadata__":{"a":1}})", "")), HasSubstr("map of strings"));
  EXPECT_THAT(refusal(file_with(R"({"__metadata__":{"xxh3:u":"0"}})", "")), HasSubstr("no tensor"));
}

TEST(Safetensors, HostileDescriptions) {
  const auto expect = [](const std::string& description, const std::string& reason) {
    EXPECT_THAT(refusal(one_tensor(description, "12345678")),
                AllOf(HasSubstr("tensor 't'"), HasSubstr(reason)))
        << description;
  };
  EXPECT_EQ(refusal(one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", "12345678")),
            "it was accepted");
  expect("1", "description");
  expect(R"({"dtype":"F32","shape":[2]})", "description");
  expect(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})", "description");
  expect(R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})", "unknown dtype");
  expect(R"({"dtype":4,"shape":[2],"data_offsets":[0,8]})", "unknown dtype");
  expect(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})", "no list");
  expect(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})", "hold -2");
  expect(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})", "hold 2.0");
  expect(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})", "hold -8");
  expect(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})", "not within");
  expect(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})", "not within");
  expect(R"({"dtype":"F32","shape":[3],"data_offsets":[0,12]})", "not within");
  expect(R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})", "another size");
  expect(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]})", "hold 184");
  expect(R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]})", "hold ");
  // 2^62 x 4 x 4 bytes is 0 modulo 2^64, and so is 2^61 x 4 x 2 + 8 bytes nearly.
  expect(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})", "too large");
  expect(R"({"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]})", "too large");
  expect(R"({"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,8]})", "too large");
  expect(R"({"dtype":"BOOL","shape":[8],"data_offsets":[0,8]})", "neither 0 nor 1");
}

TEST(Safetensors, OverlapsAndGaps) {
  const auto two = [](const std::string& a, const std::string& b) {
    return file_with(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                         R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                     "12345678");
  };
  EXPECT_EQ(refusal(two("[4,8]", "[0,4]")), "it was accepted");
  EXPECT_THAT(refusal(two("[0,4]", "[3,7]")), AllOf(HasSubstr("'b'"), HasSubstr("overlap")));
  EXPECT_THAT(refusal(two("[0,4]", "[0,4]")), HasSubstr("overlap"));
  EXPECT_THAT(refusal(one_tensor(R"({"dtype":"U8","shape":[4],"data_offsets":[4,8]})", "12345678")),
              HasSubstr("gap"));
  EXPECT_THAT(refusal(one_tensor(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4]})", "12345678")),
              HasSubstr("4 bytes at its end"));
}

}  // namespace
}  // namespace thinwire
