"""Engines run the parts of a step in this process or on a Ray cluster, with bit-identical results.

A step that can be split is a pure function of one part and of data shared by all parts, and yields blocks. An engine
returns the blocks of all parts in the order of the parts. The number of parts, the workers that run them and restarts
after a machine failure therefore do not change the result. The function must not write to the shared data: on Ray it is
read-only memory, mapped by all workers of a machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from offline.runtime.errors import Failure
from offline.runtime.progress import OnProgress

if TYPE_CHECKING:
    from features.arrays import I64

Shared = TypeVar("Shared")
Part = TypeVar("Part")
Block = TypeVar("Block")
Result = TypeVar("Result")
Library = Literal["torch", "lightgbm"]


class EngineError(Failure):
    """An engine cannot be used. The message says what is missing and how to fix it."""


class WorkerGroup(NamedTuple):
    """The place of a training worker in its group: worker `rank`, from 0, of `size`.

    network: LightGBM's network parameters for reaching the other workers. Empty for other libraries and for one worker.
    """

    rank: int = 0
    size: int = 1
    network: Mapping[str, Any] = MappingProxyType({})


class Engine(Protocol):
    """Runs the parts of a step and trains models."""

    @property
    def workers(self) -> int:
        """Number of workers that train a model. Several workers do not train bit for bit the same model as one."""

    @property
    def parts(self) -> int:
        """Recommended number of parts to split a step into."""

    def map(
        self, function: Callable[[Shared, Part], Iterable[Block]], shared: Shared, parts: Sequence[Part]
    ) -> Generator[Block, None, None]:
        """Yield the blocks of `function(shared, part)` for each part, in the order of the parts.

        function: a module-level function, not a closure. It may be called more than once with the same part. Exceptions
        it raises are raised here.
        """

    def train(
        self,
        library: Library,
        function: Callable[[Shared, WorkerGroup, OnProgress], Result],
        shared: Shared,
        on_progress: OnProgress,
    ) -> Result:
        """Call `function` on all workers and return the result of the first.

        library: the library that connects the workers. function: as in `map`. on_progress: called only if the function
        runs in this process.
        """


class Local:
    """Runs in this process, one part after the other, and yields blocks as they come."""

    parts, workers = 1, 1

    def map(
        self, function: Callable[[Shared, Part], Iterable[Block]], shared: Shared, parts: Sequence[Part]
    ) -> Generator[Block, None, None]:
        """See `Engine`."""
        for part in parts:
            yield from function(shared, part)

    def train(
        self,
        library: Library,
        function: Callable[[Shared, WorkerGroup, OnProgress], Result],
        shared: Shared,
        on_progress: OnProgress,
    ) -> Result:
        """See `Engine`. There is one worker."""
        return function(shared, WorkerGroup(), on_progress)


LOCAL = Local()


def split_evenly(start: Sequence[int] | I64, parts: int) -> list[range]:
    """Split units into at most `parts` non-empty ranges of consecutive units, of about equal total size.

    start: n + 1 ascending offsets; unit u covers `start[u]:start[u + 1]`.
    """
    first, last, units = int(start[0]), int(start[-1]), len(start) - 1
    inner = [bisect_left(start, first + (last - first) * k / parts) for k in range(1, parts)]
    return [range(a, b) for a, b in pairwise([0, *inner, units]) if a < b]
