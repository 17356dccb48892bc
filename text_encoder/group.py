"""Group of workers that train together: one worker, or several with data parallelism."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from features.arrays import I64

T = TypeVar("T")


class Group(Protocol):
    """Communication between workers. All workers must make the same calls in the same order.

    rank: number of this worker, from 0. size: number of workers.
    """

    rank: int
    size: int

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all workers, bit-identical on each. May overwrite the tensor."""

    def broadcast(self, value: T) -> T:
        """The value of the first worker."""


class SingleWorker:
    """A group of one worker."""

    rank, size = 0, 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """See `Group`."""
        return tensor

    def broadcast(self, value: T) -> T:
        """See `Group`."""
        return value


ALONE = SingleWorker()


class Workers:
    """The processes of the initialised torch process group, for gradients on a CPU."""

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """See `Group`."""
        out = tensor.detach().contiguous()
        torch.distributed.all_reduce(out)
        return out

    def broadcast(self, value: T) -> T:
        """See `Group`."""
        values: list[Any] = [value if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]


def sum_gradients(parameters: Iterable[Tensor], group: Group) -> None:
    """Replaces each gradient by its sum over the workers. A worker without a gradient counts as 0."""
    if group.size > 1:
        for parameter in parameters:
            parameter.grad = group.all_reduce(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def own_rows(rows: I64, group: Group) -> I64:
    """The rows assigned to this worker. Row r always belongs to worker r modulo `size`."""
    out: I64 = rows[rows % group.size == group.rank]
    return out
