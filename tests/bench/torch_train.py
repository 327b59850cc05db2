r"""Trains a model of ours in PyTorch's Python and writes how fast; for end_to_end.py.

    netlab --ranks 4 --rate 1gbit --launcher each -- python3 torch_train.py METHOD TASK FILE

METHOD: ddp, ddp-bf16 (its bf16 hook), ddp-powersgd (its PowerSGD hook of rank 4, in one bucket:
with more it hangs over gloo), or alone: every process for itself, without communication. TASK: a
JSON object with model ("mlp" or "gpt") and its arguments, batch, steps and report_every. Data lie
ready in memory. SGD without momentum.

Writes {"parameters", "samples_per_second": [by interval of report_every steps, of this rank],
"wire_bytes": [what this host's interface sent per step]} to FILE, which with alone gets the rank's
number behind its name.
"""

import json
import os
import sys
import time

import torch
import torch.distributed
from torch.nn import functional

import lab
from torch_all_reduce import bf16, power_sgd

sys.path.insert(0, str(lab.HERE.parent / "models"))
from gpt_torch import Gpt  # noqa: E402
from mlp_torch import Mlp  # noqa: E402

SAMPLES = 512  # that lie ready
MODELS = {"mlp": Mlp, "gpt": Gpt}


def make_data(task, rank):
    """Inputs and targets of random numbers: their values cost nothing and change nothing."""
    generator = torch.Generator().manual_seed(rank)
    if task["model"] == "mlp":
        shape = (SAMPLES, 1, 28, 28)
        assert task["arguments"]["inputs"] == 28 * 28
        return (torch.randn(shape, generator=generator),
                torch.randint(task["arguments"]["classes"], (SAMPLES,), generator=generator))
    shape = (SAMPLES, task["arguments"]["context"] + 1)
    tokens = torch.randint(task["arguments"]["vocabulary"], shape, generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def distribute(model, method):
    if method == "alone":
        return model
    options = {"bucket_cap_mb": 1 << 12} if method == "ddp-powersgd" else {}
    model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True,
                                                      **options)
    {"ddp": lambda _: None, "ddp-bf16": bf16, "ddp-powersgd": power_sgd}[method](model)
    return model


def main():
    method, task, file = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if method == "alone":
        file, ranks = f"{file}.{rank}", 1
    else:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(1)
    model = MODELS[task["model"]](**task["arguments"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = distribute(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, targets = make_data(task, rank)

    rates, wire = [], []
    sent, start = lab.sent_bytes(), time.perf_counter()
    for step in range(1, task["steps"] + 1):
        begin = (step - 1) * task["batch"] % (SAMPLES - task["batch"] + 1)
        end = begin + task["batch"]
        logits = model(inputs[begin:end])
        loss = functional.cross_entropy(logits.flatten(0, -2), targets[begin:end].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % task["report_every"] == 0:
            now, now_sent = time.perf_counter(), lab.sent_bytes()
            rates.append(ranks * task["batch"] * task["report_every"] / (now - start))
            wire.append((now_sent - sent) / task["report_every"])
            start, sent = now, now_sent
    if method == "alone" or rank == 0:
        with open(file, "w") as output:
            json.dump({"parameters": parameters, "samples_per_second": rates,
                       "wire_bytes": wire}, output)
    if method != "alone":
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
