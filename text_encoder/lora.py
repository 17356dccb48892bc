"""Low-rank adapters (LoRA: Hu et al., ICLR 2022) that are folded into the weights in the end.

Ours rather than the peft package's: once merged nothing of an adapter is left in the model, so what is needed is this
much, and a saved encoder stays a plain model directory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Adapted(nn.Module):
    """A linear layer plus `x @ down.T @ up.T`, the latter from zero: where it starts it changes nothing."""

    def __init__(self, linear: nn.Linear, rank: int, draw: torch.Generator) -> None:
        """rank: inner width; the layer's own weights are left as they are. draw: of the start of `down`."""
        super().__init__()
        self.linear = linear
        down = torch.empty(rank, linear.in_features)
        bound = 1 / math.sqrt(linear.in_features)
        self.down = nn.Parameter(down.uniform_(-bound, bound, generator=draw).to(linear.weight))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, adapted."""
        out: Tensor = self.linear(x) + nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return out

    def merged(self) -> nn.Linear:
        """The linear layer with the adapter folded into its weights, which are changed in place."""
        with torch.no_grad():
            self.linear.weight += self.up @ self.down
        return self.linear


def adapt(module: nn.Module, rank: int, seed: int) -> dict[str, Tensor]:
    """Puts an adapter on every linear layer inside a module, and gives what is to be trained, by name."""
    draw = torch.Generator().manual_seed(seed)
    for path, linear in [(p, m) for p, m in module.named_modules() if isinstance(m, nn.Linear)]:
        _put(module, path, Adapted(linear, rank, draw))
    return {
        f"{path}.{name}": parameter
        for path, adapted in module.named_modules()
        if isinstance(adapted, Adapted)
        for name, parameter in (("down", adapted.down), ("up", adapted.up))
    }


def merge(module: nn.Module) -> None:
    """Folds every adapter inside a module into its layer, and takes it away."""
    for path, adapted in [(p, m) for p, m in module.named_modules() if isinstance(m, Adapted)]:
        _put(module, path, adapted.merged())


def _put(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
