"""The workers that train together: one, or several that share the examples and add up what they found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from features.arrays import I64

T = TypeVar("T")


class Group(Protocol):
    """All call the same in the same order; rank: which of `size` workers this is, from 0."""

    rank: int
    size: int

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the workers, the same bits on each; the tensor may be overwritten."""

    def agreed(self, value: T) -> T:
        """What the first worker says."""


class Alone:
    """A group of one."""

    rank, size = 0, 1

    def total(self, tensor: Tensor) -> Tensor:
        """See `Group`."""
        return tensor

    def agreed(self, value: T) -> T:
        """See `Group`."""
        return value


ALONE = Alone()


class Workers:
    """The processes of torch's process group, which must have been set up; for gradients on a CPU."""

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def total(self, tensor: Tensor) -> Tensor:
        """See `Group`."""
        out = tensor.detach().contiguous()
        torch.distributed.all_reduce(out)
        return out

    def agreed(self, value: T) -> T:
        """See `Group`."""
        held: list[Any] = [value if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[no-any-return]


def add_up(parameters: Iterable[Tensor], group: Group) -> None:
    """Makes each gradient the sum of the workers', of which some may have none."""
    if group.size > 1:
        for parameter in parameters:
            parameter.grad = group.total(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def share(rows: I64, group: Group) -> I64:
    """The rows that are this worker's, by their number: each is one worker's, and always the same one's."""
    out: I64 = rows[rows % group.size == group.rank]
    return out
