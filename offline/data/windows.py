"""What each part learns from and is judged on: encoder, ranker, validation, test.

By time, one after the other over the whole shop (`time-split`, `given-lists`), or by each user's own last two baskets
(`leave-last-out`, for comparisons with what is published). Either way the first encoder saw what
happened before the first row the ranker learns from, and each later one (`offline.training.encoders`) what happened
before the rows it scores, so the interest score is never a label it was told. Windows meet at moments,
not at rows: what happened at one moment is never on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import F64, I32, I64
from features.log import Lists
from offline.config import Protocol, WindowConfig
from offline.runtime import DataError

WINDOWS = ("encoder", "ranker", "validation", "test")
HELD_OUT = 20_000
"""Lists of validation, and of test, that are kept however few the ranker learns from."""


@dataclass(frozen=True)
class Windows:
    """Where each window begins, and where the log ends: Unix seconds.

    By time, each is strictly after the last. With `leave-last-out` only `ranker` divides: validation and test are each
    user's own last two lists, and `validation` and `test` the moments of their first.
    """

    begin: float
    ranker: float
    validation: float
    test: float
    end: float
    protocol: Protocol = "time-split"

    @classmethod
    def split(cls, at: F64, user: I32, config: WindowConfig) -> Windows:
        """Windows over lists at `at` (float64[n], any order) of `user` (int32[n]), by the protocol of `config`.

        As near to the shares as whole moments allow. Raises DataError where there are too few moments: nothing can then
        be held back; and for a list without a time.
        """
        if not np.isfinite(at).all():
            row = int(np.flatnonzero(~np.isfinite(at))[0])
            raise DataError(f"list {row} is at {at[row]}: every list needs a time; import the log again")
        if config.protocol == "leave-last-out":
            return cls._by_user(at, user, config)
        begin, ranker, validation, test = _window_starts(at, [config.encoder, config.ranker, config.validation])
        return cls(begin, ranker, validation, test, _after(at), config.protocol)

    @classmethod
    def _by_user(cls, at: F64, user: I32, config: WindowConfig) -> Windows:
        nth = _nth_last(at, user)
        if not (nth == 1).any():
            raise DataError("no user has two baskets: leave-last-out needs three or more of some; use time-split")
        begin, ranker = _window_starts(at[nth > 1], [config.encoder / (config.encoder + config.ranker)])
        validation, test = (float(at[(nth == k) & (at >= ranker)].min(initial=np.inf)) for k in (1, 0))
        return cls(begin, ranker, validation, test, _after(at), config.protocol)

    def bounds(self, name: str) -> tuple[float, float]:
        """Begin and end of a window by name; a moment is in it from the begin, inclusive, to the end, exclusive.

        With leave-last-out those of the ranker, validation and test lie in one another: see `lists`.
        """
        edges = (self.begin, self.ranker, self.validation, self.test, self.end)
        k = WINDOWS.index(name)
        return edges[k], edges[k + 1] if k == 0 or self.protocol != "leave-last-out" else self.end

    def lists(self, name: str, lists: Lists) -> I64:
        """int64, ascending: numbers of the lists in a window.

        With leave-last-out `lists` must hold every user's last two, as `kept` does: they are told by being last.
        """
        begin, end = self.bounds(name)
        if self.protocol == "leave-last-out":
            nth = _nth_last(lists.at, lists.user)
            inside = nth == 0 if name == "test" else nth == 1 if name == "validation" else nth > 1
            return np.flatnonzero(inside & (lists.at >= begin) & (lists.at < end))
        return np.flatnonzero((lists.at >= begin) & (lists.at < end))

    def kept(self, lists: Lists, most: int, seed: int) -> I64:
        """int64, ascending: the lists that are kept of these: `most` of the ranker's, `HELD_OUT` of what is held back.

        Drawn evenly by `seed` where there are more. Thinning what is judged would only widen its intervals.
        """
        rng = np.random.default_rng(seed)
        held = max(most, HELD_OUT)
        numbers = np.arange(len(lists))
        if self.protocol == "leave-last-out":
            # Whole users: without his last list a user's list before it would be taken for the last.
            numbers = np.flatnonzero(np.isin(lists.user, _sample(np.unique(lists.user), held, rng)))
        part = lists.take(numbers)
        return np.sort(
            np.concatenate(
                [numbers[_sample(self.lists(n, part), most if n == "ranker" else held, rng)] for n in WINDOWS[1:]]
            )
        )


def _window_starts(at: F64, shares: list[float]) -> list[float]:
    """The first moment of each window, as near as whole moments come to the shares before it; the last has the rest."""
    moments, count = np.unique(at, return_counts=True)
    windows = len(shares) + 1
    if len(moments) < windows:
        raise DataError(
            f"the lists fall on {len(moments)} different moments; {windows} windows need at least {windows}: "
            "import a longer log, or one with finer timestamps"
        )
    before = np.concatenate(([0], np.cumsum(count)[:-1])) / len(at)
    first = [0]
    for k, share in enumerate(np.cumsum(shares)):
        nearest = int(np.argmin(np.abs(before - share)))
        # Each window keeps at least one moment: room is left for those still to come.
        first.append(min(max(nearest, first[-1] + 1), len(moments) - (len(shares) - k)))
    return [float(moments[f]) for f in first]


def _after(at: F64) -> float:
    return float(np.nextafter(at.max(), np.inf))


def _nth_last(at: F64, user: I32) -> I64:
    """int64, like `at`: 0 for the last list of its user, 1 for the one before it, and so on."""
    order = np.lexsort((at, user))[::-1]
    of = user[order]
    first = np.concatenate(([True], of[1:] != of[:-1]))[: len(of)]
    place = np.arange(len(of))
    out = np.empty(len(of), np.int64)
    out[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    return out


def _sample(numbers: I64, most: int, rng: np.random.Generator) -> I64:
    """The numbers, or `most` of them, in their order."""
    return numbers if len(numbers) <= most else np.sort(rng.choice(numbers, most, replace=False))
