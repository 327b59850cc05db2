// Whatever happens to a byte of a checkpoint, verify notices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fmt/format.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <random>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/threads/thread_communicator.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/strict_json.h"
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
    const std::string good = files_.read_file(folder + "/" + name, 1 << 30);
    files_.bytes(folder + "/" + name) =
        files_.read_file(checkpoint_folder(root, 8) + "/" + name, 1 << 30);
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
  EXPECT_THAT(refusal(signed_text("\"version\":1}")), HasSubstr("has no field 'step'"));
  EXPECT_THAT(refusal(signed_text("\"version\":2}")), HasSubstr("format 2"));

  // Each of these was taken for another number.
  const std::string text = write_manifest(good).substr(47);
  const auto with = [&](const std::string& what, const std::string& instead) {
    std::string changed = text;
    return signed_text(changed.replace(changed.find(what), what.size(), instead));
  };
  EXPECT_THAT(refusal(with("\"counters\":{}", "\"counters\":{\"epoch\":18446744073709551615}")),
              HasSubstr("counter 'epoch' is 18446744073709551615"));
  EXPECT_THAT(refusal(with("\"counters\":{}", "\"counters\":{\"epoch\":-1}")),
              HasSubstr("counter 'epoch' is -1"));
  EXPECT_THAT(refusal(with("\"step\":0", "\"step\":9223372036854775808")), HasSubstr("'step'"));
  EXPECT_THAT(refusal(with("\"step\":0", "\"step\":-1")), HasSubstr("'step' is -1"));
  EXPECT_THAT(refusal(with("\"step\":0", "\"step\":0.5")), HasSubstr("'step' is 0.5"));
  EXPECT_THAT(refusal(with("\"world_size\":1", "\"world_size\":4294967297")),
              HasSubstr("not those of a checkpoint"));
  EXPECT_THAT(refusal(with("\"size\":0", "\"size\":-1")), HasSubstr("'size' is -1"));
  EXPECT_THAT(refusal(with(std::string(32, '0'), "0")), HasSubstr("'xxh3_128'"));

  std::string upper = write_manifest(good);
  for (std::size_t i = 13; i < 45; ++i) upper[i] = static_cast<char>(std::toupper(upper[i]));
  EXPECT_THAT(refusal(upper), HasSubstr("checksum"));
}

// What a file says does not fill the screen, or change it.
TEST_F(Damage, ValuesAreShownShortAndPlain) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      parse_object(text, "file");
    } catch (const DataError& error) {
      return error.what();
    }
    return "it was accepted";
  };
  const std::string key(5'000'000, 'k');
  EXPECT_LT(message("{\"" + key + "\":1,\"" + key + "\":2}").size(), 500u);
  EXPECT_THAT(message("{\"\\u001b[2J\":1,\"\\u001b[2J\":2}"), HasSubstr("'\\x1b[2J'"));
  EXPECT_LT(shown(std::string(5'000'000, 'v')).size(), 200u);
}

TEST_F(Damage, JsonOfManyLevelsIsRefused) {
  const std::string deep =
      "{\"a\":" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}";
  EXPECT_THROW(parse_object(deep, "file"), DataError);
  EXPECT_NO_THROW(parse_object("{\"a\":[[[[[[[1]]]]]]]}", "file"));
}

// Signs a checkpoint anew whose file `name` holds `bytes`.
void replace_file(MemoryFileSystem& files, const std::string& name, const std::string& bytes) {
  files.bytes(folder + "/" + name) = bytes;
  Manifest manifest = read_manifest(files, folder);
  for (auto& file : manifest.files) {
    if (file.name != name) continue;
    file.size = std::ssize(bytes);
    file.xxh3_128 = hash128_hex(bytes.data(), bytes.size());
  }
  files.bytes(folder + "/manifest.json") = write_manifest(manifest);
}

TEST_F(Damage, WhatHasTheRightHashAndIsNonsenseIsRefused) {
  const auto refusal_of = [&](const std::string& name, const std::string& bytes) {
    const std::string good = files_.bytes(folder + "/" + name);
    replace_file(files_, name, bytes);
    const std::string message = refusal();
    replace_file(files_, name, good);
    return message;
  };
  EXPECT_THAT(refusal_of("model.safetensors", "nonsense"), HasSubstr("model.safetensors: "));
  EXPECT_THAT(refusal_of("optimizer.safetensors", ""), HasSubstr("ends before the header"));
  const std::string ranged =
      write_safetensors({{"a[0:2]", torch::zeros({2})}}, {{"state:a[0:2]", "ranged 0 3 a"}});
  EXPECT_THAT(refusal_of("rank-00001.safetensors", ranged), HasSubstr("does not describe it"));
  EXPECT_EQ(refusal(), "it was accepted");
}

// A file that has grown is not read to find that out.
TEST_F(Damage, AFileLargerThanListedIsRefusedByItsSize) {
  files_.bytes(folder + "/model.safetensors") += std::string(1 << 20, '\0');
  EXPECT_THAT(refusal(), HasSubstr("too large"));
}

// Processor time, which other programs do not lengthen. Four times as many entries took sixteen
// times as long.
TEST(ManyEntries, TakeTimeThatGrowsAsTheirNumber) {
  const auto seconds_for = [](int count) {
    MemoryFileSystem files;
    testing::RunState run;
    const at::Tensor one = torch::zeros({1});
    for (int i = 0; i < count; ++i) {
      run.model.entries.push_back({fmt::format("w{}", i), StateKind::replicated, one});
      run.other.entries.push_back({fmt::format("e{}", i), StateKind::averaged, one});
    }
    run.other.counters = {{"attempted_steps", 1}};
    run_ranks(
        1, [&](std::unique_ptr<Communicator> ranks) { testing::save(files, *ranks, root, run); });
    const std::string saved = checkpoint_folder(root, 1);
    const std::clock_t start = std::clock();
    verify_checkpoint(files, saved);
    testing::load(files, saved, 0, 1, run);
    testing::load(files, saved, 0, 2, run);
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  };
  EXPECT_LT(seconds_for(20'000), 9 * seconds_for(5'000));
}

}  // namespace
}  // namespace thinwire
