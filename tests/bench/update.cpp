// What an optimizer's update and the norm of a gradient take on one core, from values in memory and
// from what came over the wire.
//   update [elements [rounds]]
//
// "values" is a gradient that lies decoded in memory, "decode" what it took to get it there, and
// "coded" the same result from the message. Multiples are of plain SGD from values.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fmt/format.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "collectives/base/philox.h"
#include "collectives/compression/undecoded.h"
#include "optimizers/clipping.h"
#include "optimizers/factory.h"
#include "tests/bench/rounds.h"

namespace thinwire {
namespace {

struct Coded {
  std::string name;
  std::function<Table(std::int64_t numel)> table;
};

template <typename C>
Coded coded(const char* name, const C& options, std::int32_t block) {
  return {name, [=](std::int64_t numel) { return table_of(numel, options, block); }};
}

const std::vector<Coded>& codings() {
  static const std::vector<Coded> all = {
      coded("sign", Sign{}, 1024),
      coded("4 bits", Quantize{.bits = 4, .grid = Grid::symmetric}, 512),
      coded("bf16", Cast{Half::bf16}, 1024), coded("top-k 1 %", TopK{}, 4096)};
  return all;
}

class Bench {
 public:
  explicit Bench(std::int64_t numel)
      : numel_(numel), weights_(memory(numel)), gradient_(memory(numel)) {
    for (std::int64_t i = 0; i < numel; ++i) {
      gradient_[static_cast<std::size_t>(i)] =
          static_cast<float>(philox(1, 0, static_cast<std::uint64_t>(i))[0] * 0x1p-32 - 0.5);
    }
    Bucket& bucket = buckets_.emplace_back();
    bucket.weights = at::from_blob(weights_.get(), {numel});
    bucket.gradient = at::from_blob(gradient_.get(), {numel});
    bucket.slices = {{.name = "w", .shape = {1, numel}, .numel = numel}};
    for (const Coded& coding : codings()) messages_.push_back(encode(coding));

    add("sgd");
    add("sgd:momentum=0.9");
    add("adam");
    add("lion");
    add("onebit_adam:freeze_step=1,refresh_every=0");
    operations_.push_back({"onebit_adam: own momentum", [this] {
                             optimizers_.back()->before_reduce(
                                 buckets_[0], {.quantity = Quantity::momentum}, *queue_);
                           }});
    add_all("squared norm", [this] { sum_ += squared_norm(buckets_); });
    for (std::size_t c = 0; c < codings().size(); ++c) {
      operations_.push_back(
          {codings()[c].name + ": decode", [this, c] {
             const UndecodedEstimate& coded = *messages_[c];
             host_kernels<float>().decode(
                 {.blocks = coded.blocks.data(),
                  .block_count = static_cast<std::int64_t>(coded.blocks.size()),
                  .payload = static_cast<const char*>(coded.message.const_data_ptr()),
                  .into = gradient_.get()},
                 nullptr);
           }});
    }
  }

  void run(int rounds) {
    run_rounds(operations_, numel_, rounds, [] {});
    fmt::print("norms add up to {}\n", sum_);
  }

 private:
  std::shared_ptr<UndecodedEstimate> encode(const Coded& coding) {
    Table table = coding.table(numel_);
    auto coded = std::make_shared<UndecodedEstimate>();
    coded->message = at::empty({table.bytes}, at::kByte);
    host_kernels<float>().encode({.blocks = table.blocks.data(),
                                  .block_count = table.count(),
                                  .gradient = gradient_.get(),
                                  .residual = {},
                                  .payload = static_cast<char*>(coded->message.data_ptr())},
                                 nullptr);
    coded->blocks = std::move(table.blocks);
    return coded;
  }

  void add(const std::string& spec) {
    optimizers_.push_back(make_optimizer(spec, {}, buckets_));
    add_all(spec, [this, optimizer = optimizers_.back().get()] {
      optimizer->after_reduce(buckets_[0], {.lr = 1e-6, .committed_step = step_++});
    });
  }

  void add_all(const std::string& name, const std::function<void()>& body) {
    operations_.push_back({name + ": values", [this, body] {
                             buckets_[0].undecoded.reset();
                             body();
                           }});
    for (std::size_t c = 0; c < codings().size(); ++c) {
      operations_.push_back({name + ": coded, " + codings()[c].name, [this, body, c] {
                               buckets_[0].undecoded = messages_[c];
                               body();
                             }});
    }
  }

  std::int64_t numel_;
  Memory weights_;
  Memory gradient_;
  std::vector<Bucket> buckets_;
  std::vector<std::shared_ptr<UndecodedEstimate>> messages_;
  std::vector<std::unique_ptr<Optimizer>> optimizers_;
  std::vector<Operation> operations_;
  std::int64_t step_ = 0;
  std::unique_ptr<Queue> queue_ = make_host_queue();
  double sum_ = 0;
};

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  thinwire::Bench(argc > 1 ? std::atoll(argv[1]) : 25'600'000)
      .run(argc > 2 ? std::atoi(argv[2]) : 7);
}
