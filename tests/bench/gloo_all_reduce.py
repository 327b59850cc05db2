r"""Times PyTorch's gloo all-reduce of float32 values, as `thinwire bench all-reduce` times ours.

    netlab --ranks 2 --rate 1gbit --launcher each -- \
        python3 gloo_all_reduce.py BYTES RUNS WARMUP FILE

Rank 0 writes {"time_us", "median_us", "min_us"} to FILE: mean, median and least of the runs, each
of the slowest rank.
"""

import json
import statistics
import sys
import time

import torch
import torch.distributed


def main():
    count, runs, warmup = int(sys.argv[1]) // 4, int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    values = torch.zeros(count)
    for _ in range(warmup):
        torch.distributed.all_reduce(values)
    torch.distributed.barrier()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        torch.distributed.all_reduce(values)
        times.append(time.perf_counter() - start)
    slowest = torch.tensor([statistics.mean(times), statistics.median(times), min(times)],
                           dtype=torch.float64)
    torch.distributed.all_reduce(slowest, op=torch.distributed.ReduceOp.MAX)
    if torch.distributed.get_rank() == 0:
        with open(sys.argv[4], "w") as file:
            json.dump({name: 1e6 * value for name, value in
                       zip(("time_us", "median_us", "min_us"), slowest.tolist())}, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


main()
