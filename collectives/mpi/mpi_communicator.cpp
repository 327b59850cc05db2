#include "collectives/mpi/mpi_communicator.h"

#include <utility>

#include "collectives/base/error.h"
#include "collectives/mpi/link.h"
#include "collectives/mpi/work.h"

namespace thinwire {
namespace {

using mpi::Family;
using mpi::Link;
using mpi::Membership;
using mpi::mpi_check;

class MpiCommunicator final : public OperationCommunicator {
 public:
  explicit MpiCommunicator(std::shared_ptr<Link> link)
      : OperationCommunicator(link->rank(), link->size(), link->options().timeout),
        group_(std::make_shared<Membership>(std::move(link))) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    // MPI_Comm_split knows no deadline, so it is entered only once everybody is here.
    barrier()->wait();
    MPI_Comm part = MPI_COMM_NULL;
    mpi_check(MPI_Comm_split(link().comm(), color, key, &part));
    return open(part, link().options(), group_->link, link().family());
  }

  void abort(const std::string& reason) override { link().end({FailureKind::lost, reason}); }

  // Takes `comm` over.
  static std::unique_ptr<Communicator> open(MPI_Comm comm, const MpiOptions& options,
                                            std::shared_ptr<Link> parent,
                                            const std::shared_ptr<Family>& family) {
    auto link = std::make_shared<Link>(comm, options, std::move(parent), family);
    family->opened(link);
    return std::make_unique<MpiCommunicator>(std::move(link));
  }

 private:
  Link& link() const { return *group_->link; }

  std::unique_ptr<Work> post(Operation call) override {
    return mpi::start_work(group_, std::move(call));
  }

  std::shared_ptr<Membership> group_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, MpiOptions options) {
  check(options.max_message_bytes >= 8, "a message has room for an element");
  require_mpi_for_threads();
  MPI_Comm comm = MPI_COMM_NULL;
  mpi_check(MPI_Comm_dup(parent, &comm));
  return MpiCommunicator::open(comm, options, nullptr, Family::make(options.timeout));
}

}  // namespace thinwire
