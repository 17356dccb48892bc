"""Time windows of the lists: encoder training, ranker training, validation and test.

`time-split` and `given-lists` split the lists of the whole shop by time. `leave-last-out` holds out the last two
baskets of each user, for comparison with published results. In both cases the first encoder is trained only on events
before the first training row of the ranker, and each later one (`offline.training.encoders`) only on events before the
rows it scores, so that the interest score never contains a label. Windows are split between times, not rows: events
with equal times are always in the same window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import F64, I32, I64, Bool
from features.log import Lists
from offline.config import Protocol, WindowConfig
from offline.runtime import DataError

WINDOWS = ("encoder", "ranker", "validation", "test")
HELD_OUT = 20_000
"""Maximum number of validation lists, and of test lists, unless `most` is larger."""


@dataclass(frozen=True)
class Windows:
    """Start times of the windows, and end of the log, in Unix seconds.

    When split by time, each start is after the previous one. With `leave-last-out` only `ranker` is a boundary in time:
    validation and test are the last two lists of each user, and `validation` and `test` are the times of the first of
    these lists.
    """

    begin: float
    ranker: float
    validation: float
    test: float
    end: float
    protocol: Protocol = "time-split"

    @classmethod
    def split(cls, at: F64, user: I32, config: WindowConfig) -> Windows:
        """Split lists into windows by the protocol of `config`, as close to the shares as distinct times allow.

        at: float64[n], in any order. user: int32[n]. Raises DataError for too few distinct times, and for a list
        without a time.
        """
        if not np.isfinite(at).all():
            row = int(np.flatnonzero(~np.isfinite(at))[0])
            raise DataError(f"list {row} has time {at[row]}; every list needs a time: import the log again")
        if config.protocol == "leave-last-out":
            return cls._by_user(at, user, config)
        begin, ranker, validation, test = _window_starts(at, [config.encoder, config.ranker, config.validation])
        return cls(begin, ranker, validation, test, _after(at), config.protocol)

    @classmethod
    def _by_user(cls, at: F64, user: I32, config: WindowConfig) -> Windows:
        nth = _nth_last(at, user)
        if not (nth == 1).any():
            raise DataError(
                "no user has two baskets, and leave-last-out needs users with three or more: use time-split"
            )
        begin, ranker = _window_starts(at[nth > 1], [config.encoder / (config.encoder + config.ranker)])
        validation, test = (float(at[(nth == k) & (at >= ranker)].min(initial=np.inf)) for k in (1, 0))
        return cls(begin, ranker, validation, test, _after(at), config.protocol)

    def bounds(self, name: str) -> tuple[float, float]:
        """Begin (inclusive) and end (exclusive) of a window, by name.

        With leave-last-out the windows of ranker, validation and test overlap: use `lists`.
        """
        edges = (self.begin, self.ranker, self.validation, self.test, self.end)
        k = WINDOWS.index(name)
        return edges[k], edges[k + 1] if k == 0 or self.protocol != "leave-last-out" else self.end

    def lists(self, name: str, lists: Lists) -> I64:
        """int64, ascending: indices of the lists in a window.

        With leave-last-out `lists` must contain the last two lists of each user, because those are the test and the
        validation list. `kept` ensures this.
        """
        begin, end = self.bounds(name)
        if self.protocol == "leave-last-out":
            nth = _nth_last(lists.at, lists.user)
            inside = nth == 0 if name == "test" else nth == 1 if name == "validation" else nth > 1
            return np.flatnonzero(inside & (lists.at >= begin) & (lists.at < end))
        return np.flatnonzero((lists.at >= begin) & (lists.at < end))

    def kept(self, lists: Lists, most: int, seed: int, first: Bool | None = None) -> I64:
        """int64, ascending: indices of a uniform sample of the lists, drawn with `seed`.

        At most `most` lists for the ranker, and at most `HELD_OUT`, or `most` if larger, for validation and for test.
        Fewer held-out lists would widen the confidence intervals. first: bool[lists], lists that are kept before any
        other, for a split by time.
        """
        rng = np.random.default_rng(seed)
        held = max(most, HELD_OUT)
        numbers = np.arange(len(lists))
        if self.protocol == "leave-last-out":
            # Sample users, not lists: if a user's last list were dropped, the one before it would count as the last.
            numbers = np.flatnonzero(np.isin(lists.user, _sample(np.unique(lists.user), held, rng)))
        part = lists.take(numbers)
        chosen = np.zeros(len(part), bool) if first is None else first[numbers]
        return np.sort(
            np.concatenate(
                [
                    numbers[_sample(self.lists(n, part), most if n == "ranker" else held, rng, chosen)]
                    for n in WINDOWS[1:]
                ]
            )
        )


def _window_starts(at: F64, shares: list[float]) -> list[float]:
    """Start of each window, as close to the cumulative shares as distinct times allow. The last window has the rest."""
    times, count = np.unique(at, return_counts=True)
    windows = len(shares) + 1
    if len(times) < windows:
        raise DataError(
            f"the lists have {len(times)} distinct times, but {windows} windows need at least {windows}: "
            "import a longer log, or one with finer timestamps"
        )
    before = np.concatenate(([0], np.cumsum(count)[:-1])) / len(at)
    first = [0]
    for k, share in enumerate(np.cumsum(shares)):
        nearest = int(np.argmin(np.abs(before - share)))
        # Leave at least one time for this window and for each window that follows.
        first.append(min(max(nearest, first[-1] + 1), len(times) - (len(shares) - k)))
    return [float(times[f]) for f in first]


def _after(at: F64) -> float:
    return float(np.nextafter(at.max(), np.inf))


def _nth_last(at: F64, user: I32) -> I64:
    """int64, like `at`: 0 for the last list of each user, 1 for the one before it, and so on."""
    order = np.lexsort((at, user))[::-1]
    owner = user[order]
    first = np.concatenate(([True], owner[1:] != owner[:-1]))[: len(owner)]
    index = np.arange(len(owner))
    out = np.empty(len(owner), np.int64)
    out[order] = index - np.maximum.accumulate(np.where(first, index, 0))
    return out


def _sample(numbers: I64, most: int, rng: np.random.Generator, first: Bool | None = None) -> I64:
    """A uniform sample of at most `most` of the numbers, in their order. first: bool, by number: kept before others."""
    if len(numbers) <= most:
        return numbers
    if first is None or not first[numbers].any():
        return np.sort(rng.choice(numbers, most, replace=False))
    before = _sample(numbers[first[numbers]], most, rng)
    return np.sort(np.concatenate((before, rng.choice(numbers[~first[numbers]], most - len(before), replace=False))))
