"""Rows of all lists, with what else is read off the replay on the way: what baselines put first, who was known.

A part is a run of lists in time order: it takes in the log up to its first list, makes anew what was last made anew by
then, and goes on from there. Its rows are those a replay from the beginning would have made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, I32, I64
from features.custom import FeatureError, violations
from features.log import Lists
from features.replay import Replay, Snapshot
from features.table import rows
from features.text.vectors import Vectors
from offline.evaluation import BASELINES, DEPTH, Baselines, systems

_CHECKED_EVERY = 1000
"""Lists between checks of the user's own features."""
_BLOCK = 64
"""Lists to a block."""


@dataclass(frozen=True)
class RowsJob:
    """What the parts share. tested: int64, ascending, the numbers of the lists that baselines order too. zero_shot,
    seed, whole: as in `Baselines`."""

    replay: Replay
    lists: Lists
    tested: I64
    zero_shot: F32
    seed: int
    whole: bool

    def baselines(self) -> Baselines:
        """The orders of dull systems, over the tested lists."""
        return Baselines(
            self.replay, self.lists.take(self.tested), Vectors.quantise(self.zero_shot), self.seed, self.whole
        )


class RowBlock(NamedTuple):
    """Some neighbouring lists from number `first` on.

    rows: float32[candidates, features]. best: int32[those of them tested, BASELINES, DEPTH], see `Baselines.best`.
    warm: bool[lists], whether anything was known of the user.
    """

    first: int
    rows: F32
    best: I32
    warm: NDArray[np.bool_]


def make_rows(asked: RowsJob, part: range) -> Iterator[RowBlock]:
    """The blocks of some neighbouring lists. Raises FeatureError for a feature that breaks its contract."""
    lists = asked.lists.take(np.arange(part.start, part.stop))
    is_tested = np.isin(part, asked.tested)
    dull = asked.baselines() if is_tested.any() else None
    width, snapshots = len(asked.replay.features), asked.replay.snapshots(lists)
    for begin in range(0, len(lists), _BLOCK):
        end = min(begin + _BLOCK, len(lists))
        start = lists.start[begin : end + 1] - lists.start[begin]
        made = np.empty((int(start[-1]), width), np.float32)
        best = np.empty((int(is_tested[begin:end].sum()), len(BASELINES), DEPTH), np.int32)
        warm, judged = np.empty(end - begin, np.bool_), 0
        for k in range(end - begin):
            # By its number among all: what is drawn at random for a list hangs on it.
            r = next(snapshots)
            r = r._replace(number=part.start + r.number)
            if r.number % _CHECKED_EVERY == 0:
                _check_custom_features(r)
            made[start[k] : start[k + 1]] = rows(r.items, r.history, r.candidates, r.at, r.context)
            warm[k] = systems.has_history(r)
            if dull is not None and is_tested[begin + k]:
                best[judged] = dull.best(r)
                judged += 1
        yield RowBlock(part.start + begin, made, best, warm)


def _check_custom_features(reading: Snapshot) -> None:
    """Hold the user's own features to the contract, on this list."""
    r = reading
    said = [v for f in r.items.custom for v in violations(f, r.items, r.history, r.candidates, r.at, r.context)]
    if said:
        raise FeatureError("\n".join(said))
