// How ranks find each other: all go to rank 0, which tells them where the others listen.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "collectives/net/socket.h"
#include "collectives/sockets/socket_communicator.h"

namespace thinwire::sockets {

using net::Descriptor;

// Where a rank listens.
struct Contact {
  std::string address;  // a name or a numeric address
  int port = 0;
};

// Where rank 0 leaves word of its place, if the others do not know it; used by one rank.
class Directory {
 public:
  virtual ~Directory() = default;
  virtual void publish(const Contact& contact) = 0;
  // What rank 0 published; nothing until then. Does not wait for it.
  virtual std::optional<Contact> look_up() = 0;
};

// The two connections to one peer; empty for this rank itself.
struct Connections {
  Descriptor data;
  Descriptor notices;
};

// Joins this rank with every other one; the result is indexed by rank. Rank 0 listens where it is
// looked for: at options.meet_host and meet_port, or at a port of its own that it publishes in
// `directory`. Each other rank proves there that it belongs to the job, says where it listens
// itself, and hears of all the others once all have come. It then connects to the ranks below it
// and is connected to by those above. When a rank returns it listens no more. Throws as
// make_socket_communicator does.
std::vector<Connections> meet(const SocketOptions& options, Directory* directory,
                              Deadline deadline);

// The numeric address of this machine at which this rank listens; empty: every interface.
std::string listen_address(const SocketOptions& options);

// What ranks say to each other at the meeting. A contact has a fixed size; rank 0 answers with a
// header, and `bytes` that follow it.
constexpr std::size_t kContactBytes = 128;
std::string write_contact(const Contact& contact);
// Nothing where the bytes are no contact.
std::optional<Contact> parse_contact(std::string_view bytes);

struct MeetingHeader {
  enum class Kind : std::uint32_t {
    contacts,  // of all ranks, in order
    gave_up,   // a sentence: somebody did not come
    stopped,   // a sentence: rank 0 was asked to stop
  };
  Kind kind = Kind::contacts;
  std::uint32_t bytes = 0;
};
constexpr std::size_t kMeetingText = 4000;
// Whether this can be the header for a rank of a job of `size`.
bool plausible(const MeetingHeader& header, int size);

}  // namespace thinwire::sockets
