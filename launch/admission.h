// What keeps strangers out of a job, and jobs apart.
#pragma once

#include <optional>
#include <string>

#include "collectives/net/handshake.h"
#include "launch/environment.h"

namespace thinwire {

// How ranks know each other.
struct Admission {
  enum class Means {
    secret,  // each rank proves that it has the user's secret
    mpi,     // they meet through MPI, which also carries a key made for this start
    name,    // by the job's name alone
  };
  Means means = Means::name;
  net::JobIdentity identity;
};

// The name by which a job is told apart from others that meet at the same place.
struct JobName {
  std::string given;      // by --job-id
  std::string otherwise;  // used where neither a launcher nor --job-id gives a name
};

// How the ranks of this job know each other: by the user's secret if he has given one, which is
// THINWIRE_SECRET or the first line of the file THINWIRE_SECRET_FILE. Throws `UsageError` where
// both are set, where the secret is shorter than 16 characters or longer than 4096, and where the
// file cannot be read or others may read it (its group may, because files on shared mounts of
// clusters often allow that).
Admission admission_of(const JobEnvironment& environment, const JobName& name);

// The user's secret, if he has given one. Throws as `admission_of`.
std::optional<std::string> secret_of(const JobEnvironment& environment);

// Part of a line for the user: whom this admission keeps out.
std::string describe(const Admission& admission);

}  // namespace thinwire
