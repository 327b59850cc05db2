// Writes or checks one fixed safetensors file, for safetensors_interop.py, which knows the same
// values. Usage: safetensors_tool write|check FILE
#include <torch/torch.h>

#include <cstdio>
#include <exception>

#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/safetensors.h"

namespace thinwire {
namespace {

std::vector<NamedTensor> expected() {
  std::vector<NamedTensor> tensors;
  const std::pair<const char*, at::ScalarType> dtypes[] = {
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
      {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
      {"U8", at::kByte},    {"BOOL", at::kBool}};
  for (const auto& [name, dtype] : dtypes) {
    tensors.push_back({name, torch::tensor({0, 1, 2, 3, 100, 1}).view({2, 3}).to(dtype)});
  }
  tensors.push_back({"scalar", torch::tensor(-1.5)});
  tensors.push_back({"empty", torch::empty({0, 3})});
  return tensors;
}

int check_file(const std::string& path) {
  PosixFileSystem files;
  const Safetensors file = read_safetensors(files.read_file(path, 1 << 30), path);
  if (file.tensors.size() != expected().size() || file.metadata.at("by") != "python") return 1;
  for (const auto& [name, tensor] : expected()) {
    const at::Tensor& read = file.tensors.at(name);
    if (read.scalar_type() != tensor.scalar_type() || !read.equal(tensor)) {
      std::fprintf(stderr, "tensor '%s' differs\n", name.c_str());
      return 1;
    }
  }
  return 0;
}

int run(const std::string& command, const std::string& path) {
  if (command == "check") return check_file(path);
  PosixFileSystem files;
  const auto file = files.create(path);
  file->write(write_safetensors(expected(), {{"by", "thinwire"}}));
  file->close();
  return 0;
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  try {
    return argc == 3 ? thinwire::run(argv[1], argv[2]) : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
