"""Engines: where the parts of a step are worked on, in this process or on a Ray cluster, with the same bits either way.

A step that can be parted is a pure function of what its parts share and of one part, and yields blocks; an engine gives
the blocks of all parts in the order of the parts. So how many parts there are, who works on them, and how often one is
begun again because a machine died, is in no result. What is shared must not be written to: on Ray it is mapped from one
memory for all workers of a machine, and read-only.
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
    """An engine cannot be used; the message says what is missing and what to do."""


class WorkerGroup(NamedTuple):
    """What a worker of a training knows of the others: it is number `rank` of `size`.

    network: LightGBM's parameters by which it finds them, for a training with LightGBM; empty where it is alone.
    """

    rank: int = 0
    size: int = 1
    network: Mapping[str, Any] = MappingProxyType({})


class Engine(Protocol):
    """Where parts are worked on, and models trained."""

    @property
    def workers(self) -> int:
        """Workers of a training. What several of them make is not, to the bit, what one would."""

    @property
    def parts(self) -> int:
        """Into how many parts a step is best cut."""

    def map(
        self, function: Callable[[Shared, Part], Iterable[Block]], shared: Shared, parts: Sequence[Part]
    ) -> Generator[Block, None, None]:
        """What `function(shared, part)` yields, part after part, in their order.

        function: of a module, not a closure; it may be called more than once with the same part. Raises what it raises.
        """

    def train(
        self,
        library: Library,
        function: Callable[[Shared, WorkerGroup, OnProgress], Result],
        shared: Shared,
        on_progress: OnProgress,
    ) -> Result:
        """What `function` returns to the first worker; all workers call it.

        library: by which the workers speak with one another. function: as in `map`. on_progress: called where the
        function is worked on in this process.
        """


class Local:
    """This process, one part after the other, blocks handed on as they come."""

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
        """See `Engine`: one worker."""
        return function(shared, WorkerGroup(), on_progress)


LOCAL = Local()


def split_evenly(start: Sequence[int] | I64, parts: int) -> list[range]:
    """At most `parts` runs of consecutive units that hold about as much each; none is empty.

    start: n + 1 rising numbers: unit u holds `start[u]:start[u + 1]`.
    """
    first, last, units = int(start[0]), int(start[-1]), len(start) - 1
    inner = [bisect_left(start, first + (last - first) * k / parts) for k in range(1, parts)]
    return [range(a, b) for a, b in pairwise([0, *inner, units]) if a < b]
