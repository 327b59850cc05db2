// The one thread of a rank from which collectives are issued.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace thinwire {

// Runs jobs one after the other in the order of their submission. After a job has thrown, the jobs
// behind it are dropped until `drain` has rethrown the exception.
class CommunicationThread {
 public:
  CommunicationThread();
  // Drops what has not begun and waits for the job that runs.
  ~CommunicationThread();
  CommunicationThread(const CommunicationThread&) = delete;
  CommunicationThread& operator=(const CommunicationThread&) = delete;

  void submit(std::function<void()> job);
  // Returns when everything submitted has run; rethrows the first exception.
  void drain();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool running_ = false;
  bool stopping_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace thinwire
