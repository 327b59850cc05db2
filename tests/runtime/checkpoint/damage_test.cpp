// Whatever happens to a byte of a checkpoint, verify notices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <random>

#include "runtime/base/error.h"
#include "runtime/base/hash.h"
#include "tests/runtime/checkpoint/fake_file_system.h"
#include "tests/runtime/checkpoint/run_state.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::MemoryFileSystem;

const std::string root = "run/checkpoints";
const std::string folder = "run/checkpoints/step-00000007";

class Damage : public ::testing::Test {
 protected:
  Damage() { testing::save_run(files_, root, 2, 7); }

  std::string refusal() {
    try {
      verify_checkpoint(files_, folder);
    } catch (const DataError& error) {
      return error.what();
    }
    return "it was accepted";
  }
  std::size_t below(std::size_t bound) {
    return std::uniform_int_distribution<std::size_t>(0, bound - 1)(random_);
  }

  MemoryFileSystem files_;
  std::mt19937 random_{20261124};
};

TEST_F(Damage, NoneIsAccepted) {
  EXPECT_EQ(refusal(), "it was accepted");
}

TEST_F(Damage, RandomByteFlips) {
  const auto paths = files_.all_files();
  ASSERT_EQ(paths.size(), 5U);
  for (int i = 0; i < 400; ++i) {
    const std::string& path = paths[static_cast<std::size_t>(i) % paths.size()];
    std::string& bytes = files_.bytes(path);
    char& byte = bytes[below(bytes.size())];
    const char good = byte;
    byte = static_cast<char>(byte ^ static_cast<char>(1 + below(255)));
    EXPECT_THAT(refusal(), HasSubstr(path)) << "at " << &byte - bytes.data();
    byte = good;
  }
  EXPECT_EQ(refusal(), "it was accepted");
}

TEST_F(Damage, EveryBitOfTheManifest) {
  std::string& bytes = files_.bytes(folder + "/manifest.json");
  for (char& byte : bytes) {
    for (int bit = 0; bit < 8; ++bit) {
      byte = static_cast<char>(byte ^ (1 << bit));
      EXPECT_THAT(refusal(), HasSubstr("manifest.json"));
      byte = static_cast<char>(byte ^ (1 << bit));
    }
  }
}

TEST_F(Damage, TruncationsAndExtraBytes) {
  for (const auto& path : files_.all_files()) {
    std::string& bytes = files_.bytes(path);
    const std::string good = bytes;
    for (int i = 0; i < 20; ++i) {
      bytes = good.substr(0, i == 0 ? 0 : below(good.size()));
      EXPECT_THAT(refusal(), HasSubstr(path)) << bytes.size() << " bytes left";
    }
    for (const char extra : {'\0', ' ', '\n'}) {
      bytes = good + extra;
      EXPECT_THAT(refusal(), HasSubstr(path));
    }
    bytes = good;
  }
}

TEST_F(Damage, MissingFiles) {
  for (const auto& path : files_.all_files()) {
    files_.rename(path, path + ".away");
    EXPECT_THAT(refusal(), AllOf(HasSubstr(path == folder + "/manifest.json" ? folder : path),
                                 HasSubstr("; ")));
    files_.rename(path + ".away", path);
  }
}

TEST_F(Damage, DamagedDataNameTheTensor) {
  files_.bytes(folder + "/model.safetensors").back() ^= 1;
  EXPECT_THAT(refusal(), HasSubstr("model.safetensors: tensor 'conv1.weight'"));
}

TEST_F(Damage, AFileOfAnotherCheckpointIsNoticed) {
  testing::save_run(files_, root, 2, 8);
  for (const std::string name : {"model.safetensors", "rank-00001.safetensors"}) {
    const std::string good = files_.read_file(folder + "/" + name);
    files_.bytes(folder + "/" + name) = files_.read_file(checkpoint_folder(root, 8) + "/" + name);
    EXPECT_THAT(refusal(), HasSubstr(name));
    files_.bytes(folder + "/" + name) = good;
  }
}

// A manifest with a right checksum is still not trusted.
TEST(HostileManifest, IsRefused) {
  Manifest good;
  good.world_size = 1;
  for (const auto* name :
       {"model.safetensors", "optimizer.safetensors", "rank-00000.safetensors"}) {
    good.files.push_back({name, 0, std::string(32, '0')});
  }
  const auto refusal = [](const std::string& text) -> std::string {
    try {
      parse_manifest(text, "manifest.json");
    } catch (const DataError& error) {
      return error.what();
    }
    return "it was accepted";
  };
  const auto signed_text = [](const std::string& rest) {
    return "{\"xxh3_128\":\"" + hash128_hex(rest.data(), rest.size()) + "\"," + rest;
  };
  EXPECT_EQ(refusal(write_manifest(good)), "it was accepted");

  Manifest bad = good;
  bad.files[2].name = "../../secret";
  EXPECT_THAT(refusal(write_manifest(bad)), HasSubstr("not those of a checkpoint"));
  bad = good;
  bad.world_size = 2147483647;
  EXPECT_THAT(refusal(write_manifest(bad)), HasSubstr("not those of a checkpoint"));
  bad = good;
  bad.files.clear();
  EXPECT_THAT(refusal(write_manifest(bad)), HasSubstr("not those of a checkpoint"));
  EXPECT_THAT(refusal(signed_text("}")), HasSubstr("JSON"));
  EXPECT_THAT(refusal(signed_text("\"version\":1}")), HasSubstr("missing or of another type"));
  EXPECT_THAT(refusal(signed_text("\"version\":2}")), HasSubstr("format 2"));

  std::string upper = write_manifest(good);
  for (std::size_t i = 13; i < 45; ++i) upper[i] = static_cast<char>(std::toupper(upper[i]));
  EXPECT_THAT(refusal(upper), HasSubstr("checksum"));
}

}  // namespace
}  // namespace thinwire
