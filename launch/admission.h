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
    secret,  // the user's, which all ranks prove to have
    mpi,     // through MPI; a key of this start goes through it too
    name,    // by the job's name alone
  };
  Means means = Means::name;
  net::JobIdentity identity;
};

// What tells a job from others that meet at the same place.
struct JobName {
  std::string given;      // by --job-id
  std::string otherwise;  // where neither a launcher nor --job-id names it
};

// By the user's secret, if there is one: THINWIRE_SECRET, or the first line of the file
// THINWIRE_SECRET_FILE. Throws `UsageError` where that is no secret: both are set, it is shorter
// than 16 characters or longer than 4096, the file cannot be read, or others may read it (a group
// may, as mounts of a cluster have it).
Admission admission_of(const JobEnvironment& environment, const JobName& name);

// The user's secret, if he has given one. Throws as `admission_of`.
std::optional<std::string> secret_of(const JobEnvironment& environment);

// Whom that keeps out, as the part of a line.
std::string describe(const Admission& admission);

}  // namespace thinwire
