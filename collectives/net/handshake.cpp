#include "collectives/net/handshake.h"

#include <fmt/format.h>
#include <sodium.h>

#include <bit>
#include <cstring>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/text.h"

namespace thinwire::net {
namespace {

static_assert(std::endian::native == std::endian::little, "messages go as they lie in memory");

// "thinwire". Grows its number with every change of what ranks say to each other.
constexpr std::uint64_t kMagic = 0x6572697765696874 ^ 2;

using Nonce = std::array<std::uint8_t, 32>;
using Mac = std::array<std::uint8_t, crypto_auth_BYTES>;
static_assert(crypto_auth_KEYBYTES == sizeof(JobKey::bytes) && sizeof(Mac) == 32);

struct Hello {
  std::uint64_t magic = kMagic;
  std::uint64_t version = 0;
  std::uint64_t job = 0;
  std::uint32_t size = 0;
  std::uint32_t role = 0;
  std::uint32_t guest = 0;
  std::uint32_t host = 0;
  Nonce nonce{};
};
static_assert(sizeof(Hello) == 72);

struct Answer {
  std::uint64_t magic = kMagic;
  std::uint32_t refusal = 0;
  std::uint32_t unused = 0;
  Nonce nonce{};
};
static_assert(sizeof(Answer) == 48);

struct Welcome {
  std::uint32_t refusal = 0;
  std::uint32_t unused = 0;
  Mac proof{};
};
static_assert(sizeof(Welcome) == 40);

template <typename Message>
std::string bytes_of(const Message& message) {
  return std::string(reinterpret_cast<const char*>(&message), sizeof message);
}

template <typename Message>
Message message_of(std::string_view bytes) {
  check_equal(bytes.size(), sizeof(Message), "a message of a handshake is whole");
  Message message;
  std::memcpy(&message, bytes.data(), sizeof message);
  return message;
}

void start_library() {
  if (sodium_init() < 0) throw Bug("bug: libsodium does not start");
}

Nonce new_nonce() {
  start_library();
  Nonce nonce;
  randombytes_buf(nonce.data(), nonce.size());
  return nonce;
}

// `side` keeps a proof from being sent back as one's own.
Mac prove(const JobKey& key, std::string_view side, const std::string& said) {
  return authenticate(key, std::string(side) + said);
}

bool proves(const Mac& mac, const JobKey& key, std::string_view side, const std::string& said) {
  return sodium_memcmp(mac.data(), prove(key, side, said).data(), mac.size()) == 0;
}

constexpr std::string_view kGuest = "guest ";
constexpr std::string_view kHost = "host  ";

std::uint64_t version() {
  const std::string text = THINWIRE_VERSION;
  return hash64(text.data(), text.size());
}

std::uint64_t job_of(const JobIdentity& identity) {
  return hash64(identity.job.data(), identity.job.size());
}

Refusal refusal_of(std::uint32_t code) {
  return code < kRefusals ? static_cast<Refusal>(code) : Refusal::no_rank;
}

}  // namespace

JobKey key_from_secret(std::string_view secret) {
  start_library();
  constexpr std::string_view kPurpose = "thinwire: key of a job";
  JobKey key;
  crypto_generichash(key.bytes.data(), key.bytes.size(),
                     reinterpret_cast<const unsigned char*>(secret.data()), secret.size(),
                     reinterpret_cast<const unsigned char*>(kPurpose.data()), kPurpose.size());
  return key;
}

JobKey random_key() {
  start_library();
  JobKey key;
  randombytes_buf(key.bytes.data(), key.bytes.size());
  return key;
}

std::array<std::uint8_t, 32> authenticate(const JobKey& key, std::string_view text) {
  start_library();
  Mac mac;
  crypto_auth(mac.data(), reinterpret_cast<const unsigned char*>(text.data()), text.size(),
              key.bytes.data());
  return mac;
}

std::string name(Refusal refusal) {
  switch (refusal) {
    case Refusal::none:
      return "nothing";
    case Refusal::no_rank:
      return "no rank";
    case Refusal::version:
      return "another version of thinwire";
    case Refusal::job:
      return "another job";
    case Refusal::size:
      return "another number of ranks";
    case Refusal::host:
      return "who meant another rank";
    case Refusal::taken:
      return "a rank that is here already";
    case Refusal::secret:
      return "another secret";
  }
  throw Bug("bug: a refusal without a name");
}

std::string sentence(Refusal refusal, const JobIdentity& identity, const Introduction& who) {
  switch (refusal) {
    case Refusal::none:
    case Refusal::no_rank:
      return "what answers there is no rank of this job";
    case Refusal::version:
      return "another version of thinwire answers there; start all ranks with one";
    case Refusal::job:
      return fmt::format(
          "another job meets there than this one, '{}'; give each job a MASTER_PORT of its own, "
          "and "
          "its ranks one --job-id",
          printable(identity.job));
    case Refusal::size:
      return fmt::format(
          "what answers there is of a job with another number of ranks than {}; "
          "start all ranks with one WORLD_SIZE",
          identity.size);
    case Refusal::host:
      return "another rank answers there";
    case Refusal::taken:
      return fmt::format("rank {} is there already; start each rank once", who.guest);
    case Refusal::secret:
      return "what answers there has another secret; give all ranks the same";
  }
  throw Bug("bug: a refusal without a sentence");
}

HostSide::HostSide(const JobIdentity& identity, int rank) : identity_(&identity), rank_(rank) {}

std::size_t HostSide::wants() const {
  if (state_ == State::hello) return sizeof(Hello);
  return state_ == State::proof ? sizeof(Mac) : 0;
}

Refusal HostSide::judge(std::string_view bytes) {
  const auto hello = message_of<Hello>(bytes);
  if (hello.magic != kMagic) return Refusal::no_rank;
  if (hello.version != version()) return Refusal::version;
  if (hello.job != job_of(*identity_)) return Refusal::job;
  if (hello.size != static_cast<std::uint32_t>(identity_->size)) return Refusal::size;
  if (hello.host != static_cast<std::uint32_t>(rank_)) return Refusal::host;
  if (hello.guest >= hello.size || hello.guest == hello.host || hello.role >= kRoles) {
    return Refusal::no_rank;
  }
  who_ = {static_cast<Role>(hello.role), static_cast<int>(hello.guest), rank_};
  return Refusal::none;
}

std::string HostSide::hear(std::string_view message,
                           const std::function<bool(const Introduction&)>& expected) {
  if (state_ == State::hello) {
    refusal_ = judge(message);
    const Answer answer{kMagic, static_cast<std::uint32_t>(refusal_), 0, new_nonce()};
    said_ = std::string(message) + bytes_of(answer);
    state_ = refusal_ == Refusal::none ? State::proof : State::over;
    // Who does not know the first word gets none back.
    return refusal_ == Refusal::no_rank ? std::string() : bytes_of(answer);
  }
  if (!proves(message_of<Mac>(message), identity_->key, kGuest, said_)) {
    refusal_ = Refusal::secret;
  } else if (!expected(who_)) {
    refusal_ = Refusal::taken;
  }
  Welcome welcome{static_cast<std::uint32_t>(refusal_), 0, {}};
  if (refusal_ == Refusal::none) welcome.proof = prove(identity_->key, kHost, said_);
  state_ = refusal_ == Refusal::none ? State::in : State::over;
  return bytes_of(welcome);
}

GuestSide::GuestSide(const JobIdentity& identity, const Introduction& who) : identity_(identity) {
  Hello hello;
  hello.version = version();
  hello.job = job_of(identity);
  hello.size = static_cast<std::uint32_t>(identity.size);
  hello.role = static_cast<std::uint32_t>(who.role);
  hello.guest = static_cast<std::uint32_t>(who.guest);
  hello.host = static_cast<std::uint32_t>(who.host);
  hello.nonce = new_nonce();
  said_ = bytes_of(hello);
}

std::size_t GuestSide::wants() const {
  if (state_ == State::answer) return sizeof(Answer);
  return state_ == State::welcome ? sizeof(Welcome) : 0;
}

std::string GuestSide::hear(std::string_view message) {
  if (state_ == State::answer) {
    const auto answer = message_of<Answer>(message);
    refusal_ = answer.magic == kMagic ? refusal_of(answer.refusal) : Refusal::no_rank;
    state_ = refusal_ == Refusal::none ? State::welcome : State::over;
    if (refusal_ != Refusal::none) return {};
    said_ += std::string(message);
    return bytes_of(prove(identity_.key, kGuest, said_));
  }
  const auto welcome = message_of<Welcome>(message);
  refusal_ = refusal_of(welcome.refusal);
  if (refusal_ == Refusal::none && !proves(welcome.proof, identity_.key, kHost, said_)) {
    refusal_ = Refusal::no_rank;
  }
  state_ = refusal_ == Refusal::none ? State::in : State::over;
  return {};
}

}  // namespace thinwire::net
