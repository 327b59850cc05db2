// How two ranks that meet on a network prove to each other that they belong to one job.
//
//   guest -> host  Hello    who calls whom, of which job, and a nonce
//   host -> guest  Answer   go on, or why not, and a nonce
//   guest -> host  Proof    a MAC of the job's key over both
//   host -> guest  Welcome  the host's, or why not
//
// Messages have fixed sizes. Nothing secret is sent: the key only enters the MACs
// (HMAC-SHA-512-256, libsodium's crypto_auth). What follows on the connection is neither encrypted
// nor authenticated.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace thinwire::net {

// What the ranks of a job know and nobody else; all zero where they have no secret.
struct JobKey {
  std::array<std::uint8_t, 32> bytes{};
};
JobKey key_from_secret(std::string_view secret);
JobKey random_key();

// A MAC of the key over `text`: that somebody who has the key says it.
std::array<std::uint8_t, 32> authenticate(const JobKey& key, std::string_view text);

// What all ranks of a job have in common.
struct JobIdentity {
  JobKey key;
  std::string job;  // tells jobs apart that meet at one place
  int size = 1;     // ranks
};

// What a connection is for.
enum class Role : std::uint32_t { meeting, data, notices, lifeline };
inline constexpr std::uint32_t kRoles = 4;

// Who calls whom, and for what.
struct Introduction {
  Role role = Role::meeting;
  int guest = 0;  // ranks
  int host = 0;
};

// Why somebody is turned away.
enum class Refusal : std::uint32_t {
  none,
  no_rank,  // what he says is no Hello
  version,
  job,
  size,
  host,    // another rank listens here
  taken,   // this rank is here already
  secret,  // the proof is wrong
};
inline constexpr std::uint32_t kRefusals = 8;

// "another job", "another secret": what is said of one that is turned away.
std::string name(Refusal refusal);
// What the guest tells his operator.
std::string sentence(Refusal refusal, const JobIdentity& identity, const Introduction& who);

// The host's part of a handshake, without the network: the next message of the guest goes in, the
// answer comes out.
class HostSide {
 public:
  HostSide(const JobIdentity& identity, int rank);

  // Bytes of the message that is expected next; 0 once the handshake is over.
  std::size_t wants() const;
  // `message` has exactly that many. `expected` is asked once the guest has proved who he is.
  std::string hear(std::string_view message,
                   const std::function<bool(const Introduction&)>& expected);

  // Over, and he is in?
  bool let_in() const { return state_ == State::in; }
  Refusal refusal() const { return refusal_; }
  // Has he named the right job?
  bool named_the_job() const { return state_ != State::hello && refusal_ == Refusal::none; }
  // Who he is, if he was let in.
  const Introduction& guest() const { return who_; }

 private:
  enum class State { hello, proof, in, over };
  Refusal judge(std::string_view hello);

  const JobIdentity* identity_;
  int rank_;
  State state_ = State::hello;
  Refusal refusal_ = Refusal::none;
  Introduction who_;
  std::string said_;  // Hello and Answer: what the proofs cover
};

// The guest's part.
class GuestSide {
 public:
  GuestSide(const JobIdentity& identity, const Introduction& who);

  // What he says first.
  std::string hello() const { return said_; }
  std::size_t wants() const;
  // The host's next message. `no_rank` where the host is no rank, or does not know the secret.
  std::string hear(std::string_view message);

  bool let_in() const { return state_ == State::in; }
  Refusal refusal() const { return refusal_; }

 private:
  enum class State { answer, welcome, in, over };

  const JobIdentity& identity_;
  State state_ = State::answer;
  Refusal refusal_ = Refusal::none;
  std::string said_;
};

}  // namespace thinwire::net
