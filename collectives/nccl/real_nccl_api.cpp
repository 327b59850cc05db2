#include "collectives/nccl/nccl_api.h"

namespace thinwire {

NcclApi real_nccl_api() {
  NcclApi api;
  api.get_version = &::ncclGetVersion;
  api.get_unique_id = &::ncclGetUniqueId;
  api.comm_init_rank_config = &::ncclCommInitRankConfig;
  api.comm_split = &::ncclCommSplit;
  api.comm_count = &::ncclCommCount;
  api.comm_user_rank = &::ncclCommUserRank;
  api.comm_get_async_error = &::ncclCommGetAsyncError;
  api.comm_finalize = &::ncclCommFinalize;
  api.comm_destroy = &::ncclCommDestroy;
  api.comm_abort = &::ncclCommAbort;
  api.all_reduce = &::ncclAllReduce;
  api.reduce_scatter = &::ncclReduceScatter;
  api.all_gather = &::ncclAllGather;
  api.all_to_all = &::ncclAlltoAll;
  api.broadcast = &::ncclBroadcast;
  api.reduce = &::ncclReduce;
  api.send = &::ncclSend;
  api.recv = &::ncclRecv;
  api.group_start = &::ncclGroupStart;
  api.group_end = &::ncclGroupEnd;
  api.get_error_string = &::ncclGetErrorString;
  api.get_last_error = &::ncclGetLastError;
  return api;
}

}  // namespace thinwire
