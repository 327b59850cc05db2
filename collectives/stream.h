// Where kernels run, without CUDA's headers.
#pragma once

struct CUstream_st;

namespace thinwire {

class Team;

// What CUDA calls cudaStream_t; null is the default stream.
using StreamHandle = ::CUstream_st*;

// What runs a kernel: a stream of a GPU, or threads of the host. Kernels of the one ignore the
// other.
struct Executor {
  Executor(StreamHandle on = nullptr) : stream(on) {}
  explicit Executor(Team& with) : team(&with) {}
  StreamHandle stream = nullptr;
  Team* team = nullptr;  // null: the calling thread alone
};

}  // namespace thinwire
