"""Assignment of units to arms by hashes, the same in every worker, after a restart, and offline.

A unit is a user or a session. The hash of its ID is mixed with two keys, which gives two independent numbers in [0, 1):

- its place in the layer. It takes part if the place is between `offset` and `offset + traffic` of the experiment.
  Parts of a layer that do not overlap exclude each other. More traffic adds units, and removes none.
- its place among the arms, which are as wide as their shares. It depends on the salt alone, so that traffic does not
  move a unit to another arm, and experiments are independent of each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I64
from features.kernels.strings import Strings, hashes
from serving.config import ExperimentConfig

U64 = NDArray[np.uint64]
_MASK = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Multipliers of SplitMix64 (Steele, Lea and Flood, 2014)."""


def _mix(h: int) -> int:
    """The finalizer of SplitMix64: a bijection of 64 bits in which each bit depends on all others."""
    h = (h ^ (h >> 30)) * _FIRST & _MASK
    h = (h ^ (h >> 27)) * _SECOND & _MASK
    return h ^ (h >> 31)


def unit_hash(unit_id: str) -> int:
    """The hash of the ID of a unit, 64 bits: FNV-1a of its UTF-8, mixed. The same as of `unit_hashes`."""
    h = 0xCBF29CE484222325
    for byte in unit_id.encode("utf-8", "surrogatepass"):
        h = (h ^ byte) * 0x100000001B3 & _MASK
    return _mix(h)


def unit_hashes(unit_ids: Sequence[str]) -> U64:
    """uint64[n]: the hash of each ID."""
    return hashes(unit_ids if isinstance(unit_ids, Strings) else Strings.of(unit_ids))


def _fraction(unit: int, key: int) -> float:
    """A number in [0, 1) that depends on a unit and a key."""
    return (_mix(unit ^ key) >> 11) * 2.0**-53


def _fractions(units: U64, key: int) -> F64:
    h = units ^ np.uint64(key)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(_FIRST)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(_SECOND)
    return ((h ^ (h >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Assignment(NamedTuple):
    """Assignment of units to the arms of an experiment.

    layer, salt: keys of the two places of a unit. first, last: its part of the layer. ends: the place among the arms at
    which each arm ends, but for the last one.
    """

    layer: int
    salt: int
    first: float
    last: float
    ends: tuple[float, ...]

    @classmethod
    def of(cls, name: str, config: ExperimentConfig) -> Assignment:
        """The assignment of an experiment. name: of the experiment."""
        salt, shares = config.salt or name, [arm.share for arm in config.arms.values()]
        # The first words keep a layer and an experiment of the same name apart.
        layer = f"layer {config.layer}" if config.layer is not None else f"experiment {salt}"
        first, total = config.offset or 0.0, sum(shares)
        ends = tuple(end / total for end in accumulate(shares[:-1]))
        return cls(unit_hash(layer), unit_hash(f"arms {salt}"), first, first + config.traffic, ends)

    def takes_part(self, unit: int) -> bool:
        """True if a unit takes part. unit: its `unit_hash`."""
        return self.first <= _fraction(unit, self.layer) < self.last

    def arm(self, unit: int) -> int:
        """The number of the arm of a unit, from 0; -1 if it does not take part. unit: its `unit_hash`."""
        return bisect_right(self.ends, _fraction(unit, self.salt)) if self.takes_part(unit) else -1

    def arms(self, units: U64) -> I64:
        """int64, like `units`: `arm` of each. units: uint64, from `unit_hashes`."""
        place = _fractions(units, self.layer)
        arm = np.searchsorted(np.array(self.ends), _fractions(units, self.salt), side="right")
        return np.where((self.first <= place) & (place < self.last), arm, -1)
