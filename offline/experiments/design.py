"""Design of an analysis, and its observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from features.arrays import F64
from features.log import ATTRIBUTION_S
from offline.experiments.statistics import Moments
from offline.runtime import DataError
from serving.config import ExperimentConfig, Margins

PLANNED_DAYS = 28.0
"""Length of an experiment without a start or an end."""


@dataclass(frozen=True)
class Design:
    """Design of the analysis. arms, shares: the first is the control. unit: `user` or `session`.

    start, end: Unix seconds, None for open. planned_days: of the whole experiment; the always-valid intervals are
    narrowest then. changes: what the arm has in the configuration, by arm; no arm has any in an A/A test.
    margins: harm to the guardrails that is accepted.
    """

    name: str
    arms: tuple[str, ...]
    shares: tuple[float, ...]
    unit: str = "user"
    start: float | None = None
    end: float | None = None
    planned_days: float = PLANNED_DAYS
    interleaved: bool = False
    placements: tuple[str, ...] = ()
    changes: Mapping[str, Mapping[str, Any]] | None = None
    margins: Margins = field(default_factory=Margins)

    @property
    def is_null(self) -> bool:
        """True for an A/A test: all arms are the same."""
        return self.changes is not None and not any(self.changes.values())

    @classmethod
    def of(cls, name: str, experiments: Mapping[str, ExperimentConfig]) -> Design:
        """The design of a configured experiment. Raises DataError for an unknown one."""
        if name not in experiments:
            known = f"there are {', '.join(experiments)}" if experiments else "none is configured: see `experiments`"
            raise DataError(f"no experiment {name!r}; {known}")
        config = experiments[name]
        start, end = (None if t is None else t.timestamp() for t in (config.start, config.end))
        return cls(
            name,
            tuple(config.arms),
            tuple(arm.share for arm in config.arms.values()),
            config.unit,
            start,
            end,
            PLANNED_DAYS if start is None or end is None else (end - start) / 86400,
            config.interleave,
            config.placements,
            {
                arm: settings.model_dump(mode="json", exclude_defaults=True, exclude={"share"})
                for arm, settings in config.arms.items()
            },
            config.margins,
        )


@dataclass(frozen=True)
class Window:
    """attribution_s: seconds after an exposure within which an action counts. before_days: days before the start whose
    actions adjust the outcomes."""

    attribution_s: float = ATTRIBUTION_S
    before_days: float = 28.0


class Observed(NamedTuple):
    """Observations. Looks are the ends of days.

    moments: sums over units up to each look; None if nobody was exposed. preference: of interleaved lists, a single
    arm. first_us: midnight (UTC) at the start of the first day. days: float64[looks], days since the start. counts: of
    rows left out and of other remarks, by name.
    """

    moments: Moments | None
    preference: Moments | None
    first_us: int
    days: F64
    counts: dict[str, int]
