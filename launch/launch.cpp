#include "launch/launch.h"

#include <c10/util/Logging.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <optional>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "launch/exit.h"

namespace thinwire {
namespace {

constexpr std::int64_t kMostThreads = 256;

// What follows `flag`, as another argument or behind '='; the last one wins.
std::optional<std::string> value_of(const std::string& flag,
                                    const std::vector<std::string>& arguments) {
  std::optional<std::string> value;
  for (std::size_t i = 0; i < arguments.size() && arguments[i] != "--"; ++i) {
    if (arguments[i].starts_with(flag + "=")) value = arguments[i].substr(flag.size() + 1);
    if (arguments[i] == flag) value = i + 1 < arguments.size() ? arguments[++i] : "";
  }
  return value;
}

int run_guarded(const RankBody& body, std::unique_ptr<Communicator> ranks) {
  try {
    return body(std::move(ranks));
  } catch (const std::exception&) {
    throw;
  } catch (...) {
    throw Error(ExitCode::internal,
                "the program threw what is no std::exception; derive it from that to see it here");
  }
}

}  // namespace

int detail::launch(const std::vector<std::string>& arguments, const RankBody& body,
                   LaunchOptions options) {
  return run_reported([&](const JobEnvironment& environment) {
    if (const auto ranks = value_of("--ranks", arguments)) {
      options.ranks = parse_integer("--ranks", *ranks, 1, kMostThreads);
      require_one_kind_of_rank(environment, options.ranks);
    }
    if (environment.world_size > 1) options.ranks = 1;
    options.backend = value_of("--backend", arguments).value_or(options.backend);
    options.job_id = value_of("--job-id", arguments).value_or(options.job_id);
    const Job job = make_job(environment, {.backend = options.backend,
                                           .ranks = options.ranks,
                                           .timeout = options.timeout,
                                           .name = {options.job_id, ""}});
    share_cores(environment, options.ranks);
    if (environment.rank == 0) {
      std::fputs(fmt::format("thinwire: {}\n", describe(job)).c_str(), stderr);
    }
    return run_job(job, [&](std::unique_ptr<Communicator> ranks) {
      return run_guarded(body, std::move(ranks));
    });
  });
}

int run_reported(const std::function<int(const JobEnvironment&)>& program) {
  // libtorch then puts tensors of 2 MiB and more in huge pages. Whoever has set it decides.
  setenv("THP_MEM_ALLOC_ENABLE", "1", 0);
  // c10d logs a stack trace for a connection that is lost, which our own error names in a sentence.
  setenv("TORCH_CPP_LOG_LEVEL", "FATAL", 0);
  c10::initLogging();
  JobEnvironment environment;
  try {
    environment = job_environment();
    return program(environment);
  } catch (const std::exception& error) {
    // All ranks have the same arguments: one of them says what is wrong with these.
    const bool said = environment.rank > 0 && dynamic_cast<const UsageError*>(&error);
    if (said) {
      let_others_speak();
      return exit_code(error);
    }
    return report(error,
                  environment.world_size > 1 ? std::optional(environment.rank) : std::nullopt);
  }
}

}  // namespace thinwire
