// MPI of this process: who starts and who ends it.
#pragma once

namespace thinwire {

// Throws `UsageError`, which says what to do, unless MPI runs and serves calls from several threads
// at once (MPI_THREAD_MULTIPLE): gradients are sent from a thread of their own.
void require_mpi_for_threads();

// MPI for as long as this lives. Starts it, and ends what it started; if the program has called
// MPI_Init_thread itself, that stays its own, to finalize too. One per process.
class MpiEnvironment {
 public:
  // Throws `UsageError` where the program has finalized MPI already, or started it without
  // MPI_THREAD_MULTIPLE, and `Error` where this MPI has no such level.
  MpiEnvironment();
  // After a communication error use `abort_job` instead: MPI_Finalize would wait.
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  // Ends the whole job with `code`. For errors after which peers may wait for this rank.
  [[noreturn]] static void abort_job(int code);

 private:
  bool started_here_ = false;
};

}  // namespace thinwire
