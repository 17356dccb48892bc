"""Time windows: encoder, ranker, validation, test, one after the other over the whole shop.

Everything the encoder saw happened before the first row the ranker learns from, so the interest score is never a label
it was told. Windows meet at moments, not at rows: what happened at one moment is never on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from features.log import F64, I64, Lists
from offline.quarantine import DataError

NAMES = ("encoder", "ranker", "validation", "test")


class WindowConfig(BaseModel):
    """Shares of the lists, in time order; they add up to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: float = Field(0.3, gt=0, lt=1, description="what the text encoder learns from")
    ranker: float = Field(0.4, gt=0, lt=1, description="what the ranker learns from")
    validation: float = Field(0.1, gt=0, lt=1, description="what training is stopped and chosen by")
    test: float = Field(0.2, gt=0, lt=1, description="what is reported, and never looked at before")

    @model_validator(mode="after")
    def _whole(self) -> WindowConfig:
        total = self.encoder + self.ranker + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}; encoder + ranker + validation + test must be 1")
        return self


@dataclass(frozen=True)
class Windows:
    """Where each window but the first begins, and where the log ends: Unix seconds, each strictly after the last."""

    begin: float
    ranker: float
    validation: float
    test: float
    end: float

    @classmethod
    def split(cls, at: F64, config: WindowConfig) -> Windows:
        """Windows over moments `at` (float64[n], one a list, any order), as near to the shares as whole moments allow.

        Raises DataError where there are fewer than four moments: nothing can then be held back.
        """
        if not np.isfinite(at).all():
            row = int(np.flatnonzero(~np.isfinite(at))[0])
            raise DataError(f"list {row} is at {at[row]}: every list needs a time; import the log again")
        moments, count = np.unique(at, return_counts=True)
        if len(moments) < len(NAMES):
            raise DataError(
                f"the lists fall on {len(moments)} different moments; {len(NAMES)} windows need at least {len(NAMES)}: "
                "import a longer log, or one with finer timestamps"
            )
        before = np.concatenate(([0], np.cumsum(count)[:-1])) / len(at)
        first = [0]
        for k, share in enumerate(np.cumsum([config.encoder, config.ranker, config.validation])):
            nearest = int(np.argmin(np.abs(before - share)))
            # Each window keeps at least one moment: room is left for those still to come.
            first.append(min(max(nearest, first[-1] + 1), len(moments) - (len(NAMES) - 1 - k)))
        ends = float(np.nextafter(moments[-1], np.inf))
        begin, ranker, validation, test = (float(moments[f]) for f in first)
        return cls(begin, ranker, validation, test, ends)

    def bounds(self, name: str) -> tuple[float, float]:
        """Begin and end of a window by name; a moment is in it from the begin, inclusive, to the end, exclusive."""
        edges = (self.begin, self.ranker, self.validation, self.test, self.end)
        k = NAMES.index(name)
        return edges[k], edges[k + 1]

    def lists(self, name: str, lists: Lists) -> I64:
        """int64: numbers of the lists in a window."""
        begin, end = self.bounds(name)
        return np.flatnonzero((lists.at >= begin) & (lists.at < end))
