// A CUDA stream without CUDA's headers.
#pragma once

struct CUstream_st;

namespace thinwire {

// What CUDA calls cudaStream_t; null is the default stream. Host kernels ignore it.
using StreamHandle = ::CUstream_st*;

}  // namespace thinwire
