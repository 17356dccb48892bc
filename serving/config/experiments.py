"""The section `experiments` of the configuration: arms, who takes part, and which experiments exclude each other."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from itertools import combinations
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serving.config.settings import ExplorationConfig, ObjectiveConfig, PlacementName, Share
from serving.rules import Rules, StandingCondition, StandingRules

EXPERIMENTS = 20
"""Maximum number of experiments."""
RELEASES = 2
"""Maximum number of releases that are loaded for arms, beside the live one."""
INTERLEAVED = "interleaved"
"""In the place of an arm, for a list that mixes those of both arms."""
_ROOM = 1e-9
"""Rounding errors of shares that are ignored."""


def _experiment_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) is None:
        raise ValueError(f"{name[:80]!r} is not a valid name: use 1 to 64 letters, digits, and `_`, `.` or `-`")
    return name


def _arm_name(name: str) -> str:
    if name == INTERLEAVED:
        raise ValueError(f"{name!r} is what the log calls a list of both arms: use another name")
    return _experiment_name(name)


ExperimentName = Annotated[str, AfterValidator(_experiment_name)]
ArmName = Annotated[str, AfterValidator(_arm_name)]


class ArmConfig(BaseModel):
    """An arm of an experiment: its share of the units, and what it changes. The others are as without it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: Share = Field(
        1.0, description="Weight of the arm: its share of the units that take part, relative to the others."
    )
    release: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,100}$",
        examples=["20260601-0123456789"],
        description="ID of a release in the directory of releases, in place of the live one. null: the live one.",
    )
    order: Literal["shown", "popularity"] | None = Field(
        None,
        examples=["popularity"],
        description="Order of the list in place of the ranker's, as a holdout. shown: as the candidates of /v1/rank "
        "were sent; the experiment then has no other lists. popularity: most popular first. Rules still apply.",
    )
    objective: ObjectiveConfig | None = Field(
        None,
        examples=[{"value": "margin", "weight": 0.3}],
        description="Objective in place of that of the placement; with weight 0, none. null: that of the placement.",
    )
    rules: StandingRules = Field(
        Rules(),
        examples=[{"cap": [{"attribute": "brand", "most": 2}]}],
        description="Further rules, after those of the placement and of merchandisers, before those of the request.",
    )
    explore: ExplorationConfig | None = Field(
        None, examples=[0.1], description="`explore` in place of that of the placement. null: that one."
    )

    @property
    def explores(self) -> bool:
        """True if the arm explores some of its lists."""
        return self.explore is not None and self.explore.share > 0

    @property
    def changes(self) -> frozenset[str]:
        """Settings that the arm replaces: two experiments on the same list may not replace the same."""
        if self.order is not None:
            return frozenset({"release", "objective", "explore"})
        return frozenset(name for name in ("release", "objective", "explore") if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        replaced = [n for n in ("release", "objective", "explore") if getattr(self, n) is not None]
        if self.order is not None and replaced:
            raise ValueError(f"`order` replaces the ranker, so that `{replaced[0]}` has no effect: remove one of them")
        if self.explores and self.rules != Rules():
            raise ValueError("a list with rules is never explored: remove `explore` or `rules`")
        return self


class Margins(BaseModel):
    """Harm to the guardrails of an experiment that is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency: float = Field(5.0, ge=0, le=60_000, description="Milliseconds per list by which an arm may be slower.")
    degraded: float = Field(0.001, ge=0, le=1, description="Rise of the share of degraded lists.")
    diversity: float = Field(
        0.02, ge=0, le=1, description="Fall of the share of pairs of different categories among the first ten items."
    )


class ExperimentConfig(BaseModel):
    """An experiment: who takes part, from when to when, and its arms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    placements: tuple[PlacementName, ...] = Field(
        (), examples=[["home", "search"]], description="Placements whose lists are in the experiment. Empty: all lists."
    )
    unit: Literal["user", "session"] = Field(
        "user",
        description="What is assigned to an arm: the user, by `user_id` of a request, or the session, by `session_id`. "
        "Requests without it are not in the experiment.",
    )
    layer: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = Field(
        None,
        examples=["ranking"],
        description="Experiments with the same layer share its units: no unit is in two of them. null: a layer of its "
        "own, independent of all others.",
    )
    traffic: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the units of the layer that take part. If it grows, those that took part keep their arm.",
    )
    offset: float | None = Field(
        None,
        ge=0,
        lt=1,
        examples=[0.0],
        description="Where its share of the layer begins; it ends at `offset` + `traffic`. Leave room after it to let "
        "`traffic` grow. Required if several experiments of a layer run at the same time. null: 0.",
    )
    salt: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        examples=["second try"],
        description="Text that the assignment is drawn with; another one gives another assignment. null: the name.",
    )
    start: AwareDatetime | None = Field(
        None, examples=["2026-06-01T00:00:00Z"], description="Moment from which the experiment runs. null: at once."
    )
    end: AwareDatetime | None = Field(
        None, examples=["2026-06-29T00:00:00Z"], description="Moment at which it ends. null: none."
    )
    where: StandingCondition | None = Field(
        None,
        examples=[{"attribute": "country", "in": ["DE", "AT"]}],
        description="Condition on `device` and `query`, on columns of the request, and on attributes of the user: only "
        "requests for which it holds are in the experiment. null: all.",
    )
    arms: dict[ArmName, ArmConfig] = Field(
        min_length=2, max_length=10, description="Arms by name. The first one is the control."
    )
    interleave: bool = Field(
        False,
        description="Show each unit lists that mix those of both arms by team draft, instead of assigning it to one.",
    )
    margins: Margins = Field(
        Margins(),
        description="An arm is worse in a guardrail only if it is certainly worse by more than this, and `ship` then "
        "refuses it.",
    )

    @property
    def changes(self) -> frozenset[str]:
        """Settings that its arms replace, as in `ArmConfig.changes`."""
        if self.interleave:
            return frozenset({"release", "objective", "explore"})
        return frozenset().union(*(arm.changes for arm in self.arms.values()))

    @property
    def releases(self) -> frozenset[str]:
        """The IDs of the releases of its arms."""
        return frozenset(arm.release for arm in self.arms.values() if arm.release is not None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"it ends at {self.end.isoformat()}, which is not after its start: use a later `end`")
        if (self.offset or 0.0) + self.traffic > 1 + _ROOM:
            raise ValueError(
                f"`offset` + `traffic` is {(self.offset or 0.0) + self.traffic:g}, more than 1: reduce one"
            )
        if self.interleave and len(self.arms) != 2:
            raise ValueError(f"it interleaves {len(self.arms)} arms: use two, or remove `interleave`")
        if self.interleave and any(arm.explores for arm in self.arms.values()):
            raise ValueError("interleaved lists are not explored: remove `explore` or `interleave`")
        return self


Experiments = dict[ExperimentName, ExperimentConfig]


def check_experiments(experiments: Experiments, placements: Collection[str]) -> Experiments:
    """The experiments, if they fit together. placements: names of the configured ones.

    Raises ValueError naming the experiments, and what to change: for a placement that is not configured; for
    experiments that overlap in a layer; for experiments of different layers that replace the same for the same lists;
    and for too many releases.
    """
    for name, one in experiments.items():
        if unknown := next((p for p in one.placements if p not in placements), None):
            known = f"use one of {', '.join(placements)}" if placements else "none is configured"
            raise ValueError(f"{name}: {unknown!r} is not a placement; {known}")
    releases = frozenset[str]().union(*(one.releases for one in experiments.values()))
    if len(releases) > RELEASES:
        raise ValueError(
            f"the arms have {len(releases)} releases, {', '.join(sorted(releases))}; at most {RELEASES} are loaded "
            "beside the live one: remove experiments that have ended"
        )
    for (a, one), (b, other) in combinations(experiments.items(), 2):
        if _at_once(one, other):
            _check_pair(a, one, b, other)
    return experiments


def _check_pair(a: str, one: ExperimentConfig, b: str, other: ExperimentConfig) -> None:
    """Raise ValueError if two experiments that run at the same time do not fit together."""
    if one.layer is not None and one.layer == other.layer:
        _check_layer(a, one, b, other)
        return
    both = sorted(one.changes & other.changes)
    if both and (not one.placements or not other.placements or set(one.placements) & set(other.placements)):
        raise ValueError(
            f"{a} and {b} both replace the {both[0]} of the same lists: give them the same `layer`, so that no unit is "
            "in both, or other `placements`"
        )


def _check_layer(a: str, one: ExperimentConfig, b: str, other: ExperimentConfig) -> None:
    if one.unit != other.unit:
        raise ValueError(f"{a} and {b} are in layer {one.layer!r} with different units: use the same `unit`, or layers")
    for name, this, rest in ((a, one, other), (b, other, one)):
        if this.offset is None:
            free = (rest.offset or 0.0) + rest.traffic
            raise ValueError(
                f"{name} needs an `offset`, since layer {this.layer!r} has several experiments: for example "
                f"{free if free + this.traffic <= 1 + _ROOM else 0:g}"
            )
    begin, other_begin = one.offset or 0.0, other.offset or 0.0
    if begin < other_begin + other.traffic - _ROOM and other_begin < begin + one.traffic - _ROOM:
        of_each = ((a, begin, one.traffic), (b, other_begin, other.traffic))
        ranges = " and ".join(f"{name} has {first:g} to {first + share:g}" for name, first, share in of_each)
        raise ValueError(f"{ranges} of layer {one.layer!r}: change `offset` or `traffic`, so that they do not overlap")


def _at_once(one: ExperimentConfig, other: ExperimentConfig) -> bool:
    """True if there is a moment at which both run."""
    return _before(one.start, other.end) and _before(other.start, one.end)


def _before(start: datetime | None, end: datetime | None) -> bool:
    return start is None or end is None or start < end
