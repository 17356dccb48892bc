"""Low-rank adapters (LoRA: Hu et al., ICLR 2022), merged into the weights after training.

Implemented here instead of using the peft package: adapters are always merged, so little code is needed, and a saved
encoder is an ordinary model directory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A linear layer plus `x @ down.T @ up.T`. `up` is initially zero, so the adapter has no effect at first."""

    def __init__(self, linear: nn.Linear, rank: int, draw: torch.Generator) -> None:
        """linear: the layer, whose weights are not trained. rank: of the adapter. draw: initialises `down`."""
        super().__init__()
        self.linear = linear
        down = torch.empty(rank, linear.in_features)
        bound = 1 / math.sqrt(linear.in_features)
        self.down = nn.Parameter(down.uniform_(-bound, bound, generator=draw).to(linear.weight))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer plus the adapter."""
        out: Tensor = self.linear(x) + nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return out

    def merged(self) -> nn.Linear:
        """The linear layer with the adapter added to its weights, in place."""
        with torch.no_grad():
            self.linear.weight += self.up @ self.down
        return self.linear


def adapt(module: nn.Module, rank: int, seed: int) -> dict[str, Tensor]:
    """Adds an adapter to every linear layer inside a module. Returns the parameters to train, by name."""
    draw = torch.Generator().manual_seed(seed)
    for path, linear in [(p, m) for p, m in module.named_modules() if isinstance(m, nn.Linear)]:
        _replace_module(module, path, LoraLinear(linear, rank, draw))
    return {
        f"{path}.{name}": parameter
        for path, adapted in module.named_modules()
        if isinstance(adapted, LoraLinear)
        for name, parameter in (("down", adapted.down), ("up", adapted.up))
    }


def merge(module: nn.Module) -> None:
    """Merges every adapter inside a module into its layer and removes the adapter."""
    for path, adapted in [(p, m) for p, m in module.named_modules() if isinstance(m, LoraLinear)]:
        _replace_module(module, path, adapted.merged())


def _replace_module(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
