#include "launch/admission.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/net/socket.h"

namespace thinwire {
namespace {

constexpr std::size_t kShortest = 16;
constexpr std::size_t kLongest = 4096;
constexpr const char* kMake =
    "make one with `head -c 32 /dev/urandom | base64 > FILE; chmod 600 FILE`";

[[noreturn]] void refuse(const std::string& file, const std::string& what) {
  throw UsageError(fmt::format("THINWIRE_SECRET_FILE: '{}' {}; {}", printable(file), what, kMake));
}

// The first line of a regular file that only its owner may read.
std::string read_secret(const std::string& file) {
  const net::Descriptor opened(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!opened.open()) refuse(file, "cannot be read: " + net::error_text(errno));
  struct stat status {};
  if (::fstat(opened.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    refuse(file, "is no regular file");
  }
  if ((status.st_mode & (S_IWGRP | S_IRWXO)) != 0)
    refuse(file, "may be read by others, or written by a group");
  std::array<char, kLongest + 2> bytes;
  std::size_t used = 0;
  while (used < bytes.size()) {
    const ssize_t got = ::read(opened.get(), bytes.data() + used, bytes.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse(file, "cannot be read: " + net::error_text(errno));
    if (got == 0) break;
    used += static_cast<std::size_t>(got);
  }
  const std::string text(bytes.data(), used);
  return text.substr(0, text.find_first_of("\r\n"));
}

}  // namespace

std::optional<std::string> secret_of(const JobEnvironment& environment) {
  if (!environment.secret.empty() && !environment.secret_file.empty()) {
    throw UsageError("THINWIRE_SECRET and THINWIRE_SECRET_FILE are both set; unset one");
  }
  if (environment.secret.empty() && environment.secret_file.empty()) return std::nullopt;
  const bool from_file = !environment.secret_file.empty();
  const std::string secret = from_file ? read_secret(environment.secret_file) : environment.secret;
  if (secret.size() < kShortest || secret.size() > kLongest) {
    throw UsageError(fmt::format("{} has {} {} characters; a secret has {} to {}: {}",
                                 from_file ? "THINWIRE_SECRET_FILE" : "THINWIRE_SECRET",
                                 secret.size() > kLongest ? "more than" : "only",
                                 std::min(secret.size(), kLongest), kShortest, kLongest, kMake));
  }
  return secret;
}

Admission admission_of(const JobEnvironment& environment, const JobName& name) {
  Admission admission;
  admission.identity.size = environment.world_size;
  const std::string& start = environment.rendezvous.start;
  std::string& job = admission.identity.job;
  if (start.empty()) {
    job = name.given.empty() ? name.otherwise : name.given;
  } else {
    job = name.given.empty() ? start : start + "/" + name.given;
  }
  if (const auto secret = secret_of(environment)) {
    admission.means = Admission::Means::secret;
    admission.identity.key = net::key_from_secret(*secret);
  }
  return admission;
}

std::string describe(const Admission& admission) {
  switch (admission.means) {
    case Admission::Means::secret:
      return "strangers kept out by the secret, other jobs too";
    case Admission::Means::mpi:
      return "strangers kept out of what is not MPI's by a key that went through MPI";
    case Admission::Means::name:
      if (admission.identity.job.empty()) {
        return "no secret and no --job-id: jobs are not told apart, whoever reaches the ports can "
               "join";
      }
      return fmt::format(
          "no secret: jobs are told apart by '{}', whoever reaches the ports can join",
          printable(admission.identity.job));
  }
  throw Bug("bug: an admission without a sentence");
}

}  // namespace thinwire
