r"""Times PyTorch's ways to the mean of gradients, as `thinwire bench all-reduce` times ours.

    netlab --ranks 2 --rate 1gbit --launcher each -- \
        python3 torch_all_reduce.py METHOD SHAPES BYTES RUNS WARMUP FILE

METHOD: all_reduce, gloo's sum of one float32 tensor; ddp, ddp-bf16, ddp-powersgd: a backward
through DistributedDataParallel without a hook, with its bf16 hook, with its PowerSGD hook of rank
4. SHAPES: flat, one matrix of 1024 columns of BYTES bytes (of fewer columns where those do not
divide it), or resnet50, the parameters of torchvision's resnet50, whatever BYTES is.

The model under DDP does no arithmetic: its backward hands over gradients that lie ready. What is
timed is forward and backward, in which DDP copies gradients into its bucket and reduces it. There
is one bucket: with two or more the PowerSGD hook over gloo hangs. That hook is dense for the first
two steps, and DDP builds its buckets anew after the first, so there are at least four runs before
those that are timed.

Rank 0 writes {"time_us", "median_us", "min_us", "wire_bytes"} to FILE: mean, median and least of
the runs, each of the slowest rank, and what its network interface sent for one run.
"""

import json
import math
import statistics
import sys
import time

import torch
import torch.distributed

from lab import sent_bytes


def resnet50_shapes():
    """As launch/bench_shapes.h has them."""
    shapes = []

    def convolution(outputs, inputs, kernel):
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,), (outputs,)])

    convolution(64, 3, 7)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            convolution(width, inputs, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if block == 0:
                convolution(4 * width, inputs, 1)
            inputs = 4 * width
    shapes += [(1000, inputs), (1000,)]
    assert (len(shapes), sum(map(math.prod, shapes))) == (161, 25_557_032)
    return shapes


def flat_shape(count):
    columns = math.gcd(count, 1024)
    return [(count // columns, columns)]


class Ready(torch.autograd.Function):
    """Backward gives each parameter the gradient that lies ready for it."""

    @staticmethod
    def forward(context, gradients, *parameters):
        context.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(context, _):
        return None, *context.gradients


class Model(torch.nn.Module):
    def __init__(self, shapes):
        super().__init__()
        generator = torch.Generator().manual_seed(torch.distributed.get_rank())
        self.values = torch.nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.gradients = [torch.randn(shape, generator=generator) for shape in shapes]

    def forward(self):
        return Ready.apply(self.gradients, *self.values)


def all_reduce(shapes):
    values = torch.zeros(sum(map(math.prod, shapes)))
    return lambda: torch.distributed.all_reduce(values)


def ddp(hook):
    def make(shapes):
        model = torch.nn.parallel.DistributedDataParallel(
            Model(shapes), bucket_cap_mb=1 << 12, gradient_as_bucket_view=True)
        hook(model)

        def run():
            model.zero_grad(set_to_none=True)
            model().backward()
        return run
    return make


def bf16(model):
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    model.register_comm_hook(None, default_hooks.bf16_compress_hook)


def power_sgd(model):
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
    state = powerSGD_hook.PowerSGDState(process_group=None, matrix_approximation_rank=4,
                                        start_powerSGD_iter=2)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


METHODS = {"all_reduce": all_reduce, "ddp": ddp(lambda model: None), "ddp-bf16": ddp(bf16),
           "ddp-powersgd": ddp(power_sgd)}


def main():
    method, shapes, (count, runs, warmup) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:6])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    run = METHODS[method](resnet50_shapes() if shapes == "resnet50" else flat_shape(count // 4))
    for _ in range(warmup if method == "all_reduce" else max(warmup, 4)):
        run()
    torch.distributed.barrier()
    sent = sent_bytes()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    sent = (sent_bytes() - sent) / runs
    slowest = torch.tensor([statistics.mean(times), statistics.median(times), min(times)],
                           dtype=torch.float64)
    torch.distributed.all_reduce(slowest, op=torch.distributed.ReduceOp.MAX)
    if torch.distributed.get_rank() == 0:
        result = {name: 1e6 * value for name, value in
                  zip(("time_us", "median_us", "min_us"), slowest.tolist())}
        with open(sys.argv[6], "w") as file:
            json.dump({**result, "wire_bytes": sent}, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
