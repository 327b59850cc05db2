#include "launch/options_table.h"

#include <fmt/format.h>

#include <limits>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/compression/parse.h"
#include "optimizers/list.h"

namespace thinwire {
namespace {

constexpr std::int64_t kMany = 1'000'000'000;
constexpr std::int64_t kLargestSeed = std::numeric_limits<std::int64_t>::max();

struct Set {
  TrainRequest& request;
  const std::string& place;
  const std::string& text;

  void operator()(const IntegerField& field) const {
    request.*field.member = parse_integer(place, text, field.low, field.high);
  }
  void operator()(const SeedField& field) const {
    request.*field.member = static_cast<std::uint64_t>(parse_integer(place, text, 0, kLargestSeed));
  }
  void operator()(const NumberField& field) const {
    request.*field.member = parse_number(place, text, field.low, field.high);
  }
  void operator()(const WordField& field) const {
    if (text.empty()) throw UsageError(fmt::format("{} is empty; give it a value", place));
    request.*field.member = text;
  }
  void operator()(const TextField& field) const { request.*field.member = text; }
  void operator()(const SwitchField& field) const {
    if (text != "true" && text != "false") {
      throw UsageError(fmt::format("{} is '{}'; give true or false", place, printable(text)));
    }
    request.*field.member = text == "true";
  }
};

struct AllowedRange {
  std::string operator()(const IntegerField& field) const {
    return fmt::format("{} to {}", field.low, field.high);
  }
  std::string operator()(const SeedField&) const { return fmt::format("0 to {}", kLargestSeed); }
  std::string operator()(const NumberField& field) const {
    return fmt::format("{} to {}", field.low, field.high);
  }
  std::string operator()(const WordField&) const { return {}; }
  std::string operator()(const TextField&) const { return {}; }
  std::string operator()(const SwitchField&) const { return {}; }
};

struct Placeholder {
  std::string operator()(const IntegerField&) const { return "N"; }
  std::string operator()(const SeedField&) const { return "N"; }
  std::string operator()(const NumberField&) const { return "X"; }
  std::string operator()(const WordField&) const { return "TEXT"; }
  std::string operator()(const TextField&) const { return "TEXT"; }
  std::string operator()(const SwitchField&) const { return {}; }
};

}  // namespace

void Option::set(TrainRequest& request, const std::string& place, const std::string& text) const {
  std::visit(Set{request, place, text}, field);
}

std::string Option::get(const TrainRequest& request) const {
  // fmt prints the shortest digits that read back as the same double.
  return std::visit([&](const auto& f) { return fmt::format("{}", request.*f.member); }, field);
}

std::string Option::range() const {
  return std::visit(AllowedRange{}, field);
}

std::string Option::placeholder() const {
  return std::visit(Placeholder{}, field);
}

std::vector<Option> options_table() {
  using R = TrainRequest;
  using Integer = IntegerField;
  using Number = NumberField;
  using Word = WordField;
  using Text = TextField;
  using Switch = SwitchField;
  const std::string data = "Data and model";
  const std::string length = "Length";
  const std::string optimizer = "Optimizer";
  const std::string communication = "Communication";
  const std::string run = "Run";
  return {
      {"model", data, "mlp | convnet | resnet8 | resnet18 | gpt", Word{&R::model}},
      {"data", data, "fashion-mnist[:PATH] | synthetic | text[:PATH]", Word{&R::data}},
      {"partition", data, "iid | by_label[:classes=N]: each rank has N classes only",
       Word{&R::partition}},
      {"batch-size", data, "samples per rank and micro-batch", Integer{&R::batch_size, 1, 1 << 20}},
      {"accumulate", data, "micro-batches per step", Integer{&R::accumulate, 1, 1 << 16}},
      {"precision", data, "of forward and backward: fp32 | bf16; weights stay fp32",
       Word{&R::precision}},

      {"epochs", length, "passes over the training data", Integer{&R::epochs, 1, 1'000'000}},
      {"steps", length, "steps; 0: as many as the epochs have", Integer{&R::steps, 0, kMany}},

      {"optimizer", optimizer, optimizer_help(), Word{&R::optimizer}},
      {"lr", optimizer, "learning rate", Number{&R::lr, 0, 1000}},
      {"lr-schedule", optimizer, "constant | step | cosine, each with warmup=STEPS",
       Word{&R::lr_schedule}},
      {"momentum", optimizer, "share of the last update that is kept",
       Number{&R::momentum, 0, 0.9999}},
      {"weight-decay", optimizer, "per unit of weight; not applied to biases and norms",
       Number{&R::weight_decay, 0, 1000}},
      {"clip-norm", optimizer, "largest L2 norm of the whole gradient; 0: no clipping",
       Number{&R::clip_norm, 0, 1e9}},

      {"compressor", communication, "auto: what the optimizer is made for | " + compressor_help(),
       Word{&R::compressor}},
      {"feedback", communication,
       "what becomes of what was not sent: auto | none | error_feedback | "
       "ef21[:momentum=Y] | econtrol[:eta=auto|X,momentum=Y]",
       Word{&R::feedback}},
      {"exchange", communication,
       "how messages become one mean: auto | all_reduce | two_stage | all_gather",
       Word{&R::exchange}},
      {"start-iter", communication, "steps that go uncompressed before compression starts",
       Integer{&R::start_iter, 0, kMany}},
      {"min-dimensions", communication,
       "parameters of fewer dimensions go uncompressed; 1 compresses vectors too, but for powersgd",
       Integer{&R::min_dimensions, 0, 16}},
      {"dense-below", communication, "parameters of fewer values go uncompressed",
       Integer{&R::dense_below, 0, kMany}},
      {"dense-names", communication,
       "patterns of names of parameters that go uncompressed: PATTERN[,PATTERN], e.g. "
       "*embedding*,fc.weight",
       Text{&R::dense_names}},
      {"bucket-mb", communication, "MiB of gradients that travel together",
       Number{&R::bucket_mb, 0.0001, 4096}},
      {"timeout", communication, "seconds that a collective may take",
       Integer{&R::timeout, 1, 86'400}},
      {"check-every", communication,
       "steps between comparisons of the ranks' weights; 0: only at checkpoints",
       Integer{&R::check_every, 0, kMany}},

      {"ranks", run, "ranks as threads of this process; 1 under a launcher",
       Integer{&R::ranks, 1, 256}},
      {"backend", run, "auto | threads | mpi | sockets: what joins the ranks", Word{&R::backend}},
      {"job-id", run,
       "name of the job, for jobs that meet at the same place without a launcher that names them; "
       "empty: the output folder",
       Text{&R::job_id}},
      {"device", run, "auto | cpu | cuda; auto: cuda where there is one", Word{&R::device}},
      {"share-device", run, "ranks of a host may share a device", Switch{&R::share_device}},
      {"threads", run,
       "of each rank's forward and backward; 0: OMP_NUM_THREADS, or its share of the processors",
       Integer{&R::threads, 0, 1024}},
      {"exchange-threads", run,
       "auto | N: threads of each rank's codecs and update; auto: processors that --threads leaves "
       "idle",
       Word{&R::exchange_threads}},
      {"kernels", run,
       "auto | a form that `thinwire info --kernels` lists; auto: large models measure which is "
       "the "
       "fastest; no result depends on it",
       Word{&R::kernels}},
      {"seed", run, "of weights, data order and rounding", SeedField{&R::seed}},
      {"output", run, "folder for the report and the checkpoints", Word{&R::output}},
      {"checkpoint-every", run, "steps between checkpoints; 0: only at the end",
       Integer{&R::checkpoint_every, 0, kMany}},
      {"resume", run, "auto or a checkpoint's folder; empty: start anew", Text{&R::resume}},
      {"report-every", run, "steps between reports", Integer{&R::report_every, 1, kMany}},
      {"trace", run, "file for a timeline of the steps; empty: none", Text{&R::trace}},
  };
}

}  // namespace thinwire
