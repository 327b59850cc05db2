#include "launch/bench_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <variant>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/memory.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

constexpr std::int64_t kLargest = std::int64_t{1} << 40;

// A whole number from `low` to `high`.
struct Number {
  std::int64_t BenchOptions::*member;
  std::int64_t low;
  std::int64_t high;
};
// The same in bytes: 1024, 4K, 64M, 1G.
struct Bytes {
  std::int64_t BenchOptions::*member;
};
struct Text {
  std::string BenchOptions::*member;
};

// One of the words that `name` gives.
struct Shapes {
  BenchShapes BenchOptions::*member;
};

struct Flag {
  std::string name;  // with its dashes
  std::string help;
  std::variant<Number, Bytes, Text, Shapes> field;
};

std::vector<Flag> flags() {
  using B = BenchOptions;
  return {
      {"--ranks", "ranks as threads of this process; 1 under mpirun", Number{&B::ranks, 1, 256}},
      {"--min-bytes", "smallest size: 1024, 4K, 64M, 1G", Bytes{&B::min_bytes}},
      {"--max-bytes", "largest size", Bytes{&B::max_bytes}},
      {"--factor", "from one size to the next", Number{&B::factor, 2, 1 << 20}},
      {"--shapes", "flat: one matrix; resnet50: its 161 tensors, in the trainer's buckets",
       Shapes{&B::shapes}},
      {"--bucket-mb", "MiB of these tensors that travel together", Number{&B::bucket_mb, 1, 4096}},
      {"--iterations", "timed runs per size", Number{&B::iterations, 1, 1'000'000}},
      {"--warmup", "runs before them", Number{&B::warmup, 0, 1'000'000}},
      {"--compressor", "none: the plain sum; else as `thinwire train` has it",
       Text{&B::compressor}},
      {"--feedback", "as `thinwire train` has it", Text{&B::feedback}},
      {"--backend", "auto | threads | mpi | sockets", Text{&B::backend}},
      {"--job-id",
       "name of the job, for jobs that meet at the same place without a launcher that names them",
       Text{&B::job_id}},
      {"--exchange-threads", "auto | N: threads of each rank's codecs; auto: its processors",
       Text{&B::exchange_threads}},
      {"--kernels", "as `thinwire train` has it", Text{&B::kernels}},
      {"--timeout", "seconds that a collective may take", Number{&B::timeout, 1, 86'400}},
      {"--json", "file for the results; empty: none", Text{&B::json}},
  };
}

std::int64_t parse_bytes(const std::string& flag, const std::string& text) {
  const std::string units = "KMG";
  const std::size_t unit = text.empty() ? std::string::npos : units.find(text.back());
  const std::int64_t scale =
      unit == std::string::npos ? 1 : std::int64_t{1} << (10 * (static_cast<int>(unit) + 1));
  const std::string digits = unit == std::string::npos ? text : text.substr(0, text.size() - 1);
  // At least one element.
  const std::int64_t low = scale == 1 ? 4 : 1;
  return scale * parse_integer(flag, digits, low, kLargest / scale);
}

BenchShapes parse_shapes(const std::string& flag, const std::string& text) {
  const ChoiceReader spec(flag, text);
  spec.done();
  for (const BenchShapes shapes : {BenchShapes::flat, BenchShapes::resnet50}) {
    if (spec.name() == name(shapes)) return shapes;
  }
  spec.unknown_name({name(BenchShapes::flat), name(BenchShapes::resnet50)});
}

void set(BenchOptions& options, const Flag& flag, const std::string& text) {
  if (const auto* number = std::get_if<Number>(&flag.field)) {
    options.*number->member = parse_integer(flag.name, text, number->low, number->high);
  } else if (const auto* bytes = std::get_if<Bytes>(&flag.field)) {
    options.*bytes->member = parse_bytes(flag.name, text);
  } else if (const auto* shapes = std::get_if<Shapes>(&flag.field)) {
    options.*shapes->member = parse_shapes(flag.name, text);
  } else {
    options.*std::get<Text>(flag.field).member = text;
  }
}

std::string text_of(BenchShapes shapes) {
  return name(shapes);
}

template <typename T>
std::string text_of(const T& value) {
  return fmt::format("{}", value);
}

std::string value_of(const BenchOptions& options, const Flag& flag) {
  return std::visit([&](const auto& field) { return text_of(options.*field.member); }, flag.field);
}

}  // namespace

std::string name(BenchShapes shapes) {
  return shapes == BenchShapes::flat ? "flat" : "resnet50";
}

BenchOptions parse_bench(const std::vector<std::string>& arguments) {
  const std::vector<Flag> all = flags();
  BenchOptions options;
  std::set<std::string> seen;
  for (auto argument = arguments.begin(); argument != arguments.end(); ++argument) {
    const std::size_t equals = argument->find('=');
    const std::string name = argument->substr(0, equals);
    const auto flag =
        std::find_if(all.begin(), all.end(), [&](const Flag& f) { return f.name == name; });
    if (flag == all.end()) {
      std::vector<std::string> known;
      for (const Flag& f : all) known.push_back(f.name);
      const std::string near = nearest(name, known);
      throw UsageError(fmt::format(
          "bench all-reduce: unknown flag '{}'; {}`thinwire bench --help` "
          "lists all",
          printable(name), near.empty() ? "" : fmt::format("did you mean '{}'? ", near)));
    }
    if (!seen.insert(name).second) {
      throw UsageError(fmt::format("{} is given twice; give it once", printable(name)));
    }
    if (equals != std::string::npos) {
      set(options, *flag, argument->substr(equals + 1));
    } else if (argument + 1 != arguments.end() && !(argument + 1)->starts_with("--")) {
      set(options, *flag, *++argument);
    } else {
      throw UsageError(fmt::format("{0} lacks its value; write {0} VALUE", name));
    }
  }
  if (options.shapes != BenchShapes::flat) {
    for (const std::string flag : {"--min-bytes", "--max-bytes", "--factor"}) {
      if (!seen.contains(flag)) continue;
      throw UsageError(fmt::format("{} is given, but --shapes {} has one size; leave out {}", flag,
                                   name(options.shapes), flag));
    }
  } else if (seen.contains("--bucket-mb")) {
    throw UsageError(
        "--bucket-mb is given, but --shapes flat is one bucket; leave it out, or give "
        "--shapes resnet50");
  }
  if (options.min_bytes > options.max_bytes) {
    throw UsageError(fmt::format("--min-bytes is {}, more than --max-bytes, {}; swap them",
                                 options.min_bytes, options.max_bytes));
  }
  if (options.shapes == BenchShapes::flat) {
    require_memory("--max-bytes",
                   static_cast<double>(options.max_bytes) * static_cast<double>(options.ranks));
  }
  return options;
}

std::string bench_help_text() {
  std::string text =
      "Usage: thinwire bench all-reduce [--FLAG VALUE]...\n"
      "Times the sum over ranks of float32 values by size, or with --compressor the mean as the\n"
      "trainer makes it, of one matrix or a model's tensors. Ranks are threads (--ranks) or a\n"
      "launcher's processes.\n"
      "\n";
  for (const Flag& flag : flags()) {
    const std::string value = value_of(BenchOptions{}, flag);
    text += fmt::format("  {:<14} {}{}\n", flag.name, flag.help,
                        value.empty() ? "" : fmt::format(" (={})", value));
  }
  text +=
      "\n"
      "The table is that of nccl-tests: time is the mean over the timed runs of the slowest rank;\n"
      "algbw = size / time; busbw = algbw * 2 (n-1)/n, the same for every n on links of one "
      "speed.\n"
      "#wrong counts values, of one more run, that are not the exact sum; with --compressor: that\n"
      "differ between ranks. wire: bytes that rank 0 sent for one run.\n";
  return text;
}

}  // namespace thinwire
