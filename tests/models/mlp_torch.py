"""The mlp of examples/models/networks.h in PyTorch's Python, with the same names."""

from torch import nn


class Mlp(nn.Module):
    def __init__(self, inputs, hidden, classes):
        super().__init__()
        self.depth = len(hidden) + 1
        for number, (before, after) in enumerate(
                zip([inputs, *hidden], [*hidden, classes]), start=1):
            self.add_module(f"fc{number}", nn.Linear(before, after))

    def forward(self, x):
        x = self.fc1(x.flatten(1))
        for number in range(2, self.depth + 1):
            x = getattr(self, f"fc{number}")(x.relu())
        return x
