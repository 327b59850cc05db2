"""Our Gpt gives the logits and the gradients that PyTorch's Python gives for the same weights.

Usage: gpt_reference.py GPT_TOOL
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from gpt_torch import Gpt


def close(name, ours, reference, tolerance):
    worst = ((ours - reference).abs().max() / reference.abs().max()).item()
    assert worst < tolerance, f"{name}: {worst} of the largest value"


def compare(tool, folder, dtype, tolerance):
    name = str(dtype).removeprefix("torch.")
    path = folder / f"gpt-{name}.safetensors"
    subprocess.run([tool, name, path], check=True)
    tensors = load_file(path)
    weights = {key.removeprefix("weight/"): value for key, value in tensors.items()
               if key.startswith("weight/")}
    model = Gpt(vocabulary=50, context=24, layers=3, heads=4, width=32).to(dtype)
    model.load_state_dict(weights)  # refuses a name or a shape that differs
    tokens = tensors["tokens"]
    logits = model(tokens)
    assert logits.std() > 0.1, "logits that nearly vanish prove nothing"
    close("logits", tensors["logits"], logits, tolerance)
    functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    for key, parameter in model.named_parameters():
        close(key, tensors["gradient/" + key], parameter.grad, 10 * tolerance)


def main():
    tool = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        compare(tool, Path(folder), torch.float64, 1e-12)
        compare(tool, Path(folder), torch.float32, 1e-5)


if __name__ == "__main__":
    main()
