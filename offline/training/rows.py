"""Feature rows of all lists, computed by replaying the log, with the top items of each baseline and a warm/cold flag.

A part is a range of consecutive lists in time order. It reads the log up to its first list, refits the statistics of
the last refresh before it, and continues from there. Its rows equal those of a replay from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, I32, I64, Bool
from features.custom import FeatureError, violations
from features.log import Lists
from features.replay import Replay, Snapshot
from features.table import rows
from features.text.vectors import Vectors
from offline.evaluation import BASELINES, DEPTH, Baselines, systems

_CHECKED_EVERY = 1000
"""Lists between two checks of custom features."""
_BLOCK = 64
"""Lists per block."""


@dataclass(frozen=True)
class RowsJob:
    """Input shared by the parts.

    tested: int64, ascending, numbers of the lists that baselines order too. zero_shot, seed, whole: as in `Baselines`.
    logged: bool[lists], False for a rebuilt list; None if all are of one kind. Baselines order each kind by itself,
    because in rebuilt lists they may leave out what the user had.
    """

    replay: Replay
    lists: Lists
    tested: I64
    zero_shot: F32
    seed: int
    whole: bool
    logged: Bool | None = None

    def kinds(self, numbers: I64) -> Bool:
        """bool, like `numbers`: whether these lists are logged ones."""
        return np.zeros(len(numbers), bool) if self.logged is None else self.logged[numbers]

    def baselines(self, logged: bool) -> Baselines:
        """The baselines of the tested lists of a kind."""
        tested = self.tested[self.kinds(self.tested) == logged]
        return Baselines(self.replay, self.lists.take(tested), Vectors.quantise(self.zero_shot), self.seed, self.whole)


class RowBlock(NamedTuple):
    """A block of consecutive lists, starting at list `first`.

    rows: float32[candidates, features]. best: int32[tested lists of the block, BASELINES, DEPTH], see `Baselines.best`.
    warm: bool[lists], True if the user had engaged with an item or seen a list before.
    """

    first: int
    rows: F32
    best: I32
    warm: NDArray[np.bool_]


def make_rows(job: RowsJob, part: range) -> Iterator[RowBlock]:
    """Blocks of the consecutive lists in `part`. Raises FeatureError for a custom feature that breaks its contract."""
    lists = job.lists.take(np.arange(part.start, part.stop))
    is_tested = np.isin(part, job.tested)
    is_logged = job.kinds(np.arange(part.start, part.stop))
    baselines = {bool(kind): job.baselines(bool(kind)) for kind in np.unique(is_logged[is_tested])}
    width, snapshots = len(job.replay.features), job.replay.snapshots(lists)
    for begin in range(0, len(lists), _BLOCK):
        end = min(begin + _BLOCK, len(lists))
        start = lists.start[begin : end + 1] - lists.start[begin]
        x = np.empty((int(start[-1]), width), np.float32)
        best = np.empty((int(is_tested[begin:end].sum()), len(BASELINES), DEPTH), np.int32)
        warm, tested = np.empty(end - begin, np.bool_), 0
        for k in range(end - begin):
            # Its number among all lists: random draws for a list are seeded with it.
            r = next(snapshots)
            r = r._replace(number=part.start + r.number)
            if r.number % _CHECKED_EVERY == 0:
                _check_custom_features(r)
            x[start[k] : start[k + 1]] = rows(r.items, r.history, r.candidates, r.at, r.context)
            warm[k] = systems.has_history(r)
            if is_tested[begin + k]:
                best[tested] = baselines[bool(is_logged[begin + k])].best(r)
                tested += 1
        yield RowBlock(part.start + begin, x, best, warm)


def _check_custom_features(r: Snapshot) -> None:
    """Check custom features against their contract on this list."""
    found = [v for f in r.items.custom for v in violations(f, r.items, r.history, r.candidates, r.at, r.context)]
    if found:
        raise FeatureError("\n".join(found))
