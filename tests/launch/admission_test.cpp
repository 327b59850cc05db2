// Who may join a job.
#include "launch/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "collectives/base/error.h"
#include "launch/job.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;
using Launcher = JobEnvironment::Launcher;

JobEnvironment of_two(const std::string& start = "") {
  JobEnvironment environment;
  environment.launcher = Launcher::torchrun;
  environment.world_size = 2;
  environment.rendezvous = {
      .server = Rendezvous::Server::rank_zero, .host = "127.0.0.1", .port = 29500, .start = start};
  return environment;
}

std::string error_of(const JobEnvironment& environment) {
  try {
    admission_of(environment, {});
    return "";
  } catch (const UsageError& error) {
    return error.what();
  }
}

TEST(Admission, JobsAreToldApartByTheLauncherThenByHandThenByTheirOutput) {
  const auto job = [](const std::string& start, const JobName& name) {
    return admission_of(of_two(start), name).identity.job;
  };
  EXPECT_EQ(job("", {}), "");
  EXPECT_EQ(job("", {"", "/runs/a"}), "/runs/a");
  EXPECT_EQ(job("", {"mine", "/runs/a"}), "mine");
  EXPECT_EQ(job("srun-1.0-", {"", "/runs/a"}), "srun-1.0-");
  EXPECT_EQ(job("srun-1.0-", {"mine", "/runs/a"}), "srun-1.0-/mine");
}

class SecretFile : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(::mkdtemp(folder_.data()), nullptr); }
  void TearDown() override {
    ::unlink(file().c_str());
    ::rmdir(folder_.c_str());
  }
  std::string file() const { return folder_ + "/secret"; }
  JobEnvironment with(const std::string& text, mode_t mode = 0600) {
    std::ofstream(file(), std::ios::binary) << text;
    ::chmod(file().c_str(), mode);
    JobEnvironment environment = of_two();
    environment.secret_file = file();
    return environment;
  }

 private:
  std::string folder_ = ::testing::TempDir() + "thinwire-XXXXXX";
};

TEST_F(SecretFile, ItsFirstLineIsTheSecret) {
  for (const char* text : {"0123456789abcdef", "0123456789abcdef\n", "0123456789abcdef\r\nmore"}) {
    EXPECT_EQ(secret_of(with(text)), "0123456789abcdef");
  }
  JobEnvironment environment = of_two();
  environment.secret = "0123456789abcdef";
  const Admission by_variable = admission_of(environment, {});
  const Admission by_file = admission_of(with("0123456789abcdef\n"), {});
  EXPECT_EQ(by_variable.means, Admission::Means::secret);
  EXPECT_EQ(by_variable.identity.key.bytes, by_file.identity.key.bytes);
  EXPECT_NE(by_variable.identity.key.bytes, net::JobKey().bytes);
}

TEST_F(SecretFile, WhatIsNoSecretIsRefused) {
  EXPECT_THAT(error_of(with("short\n")), HasSubstr("THINWIRE_SECRET_FILE has only 5 characters; a "
                                                   "secret has 16 to 4096: make one with"));
  EXPECT_THAT(error_of(with("")), HasSubstr("has only 0 characters"));
  EXPECT_THAT(error_of(with(std::string(5000, 'x'))), HasSubstr("has more than 4096 characters"));
  EXPECT_THAT(error_of(with("0123456789abcdef", 0604)),
              HasSubstr("secret' may be read by others, or written by a group; make one with"));
  JobEnvironment environment = with("0123456789abcdef");
  environment.secret = "0123456789abcdef";
  EXPECT_THAT(error_of(environment), HasSubstr("are both set; unset one"));
  environment = of_two();
  for (const auto& [file, what] :
       {std::pair("/dev/zero", "is no regular file"), std::pair("/", "is no regular file"),
        std::pair("/nowhere/\x1b[31m", "/nowhere/\\x1b[31m' cannot be read: No such file")}) {
    environment.secret_file = file;
    EXPECT_THAT(error_of(environment), HasSubstr(what));
  }
  ::unlink(this->file().c_str());
  ASSERT_EQ(::mkfifo(this->file().c_str(), 0600), 0);
  environment.secret_file = this->file();
  EXPECT_THAT(error_of(environment), HasSubstr("is no regular file"));
}

TEST(Admission, ALineSaysWhoIsKeptOut) {
  JobEnvironment environment = of_two();
  const auto line = [&](const std::string& backend) {
    return describe(make_job(environment, {.backend = backend, .name = {"mine", ""}}));
  };
  EXPECT_THAT(line("sockets"), HasSubstr("met at 127.0.0.1:29500; no secret: jobs are told apart "
                                         "by 'mine', whoever reaches the ports can join"));
  EXPECT_THAT(line("sockets"), ::testing::Not(HasSubstr("every interface")));
  environment.secret = "0123456789abcdef";
  EXPECT_THAT(line("sockets"), HasSubstr("; strangers kept out by the secret"));
  environment.rendezvous.host = "192.0.2.1";  // nobody's (RFC 5737)
  EXPECT_THAT(line("sockets"), HasSubstr("; rank 0 listens on every interface, as '192.0.2.1' is "
                                         "not one address of this machine"));
}

}  // namespace
}  // namespace thinwire
