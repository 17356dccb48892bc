"""The experiments of the configuration, and which of their arms a request is in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from features.columns import Scalar
from serving.api import RankRequest, RecommendRequest
from serving.config import INTERLEAVED, ArmConfig, ExperimentConfig
from serving.experiments.assignment import Assignment, unit_hash
from serving.rules import RequestCondition, compile_for_requests

Key = tuple[str, str]
"""The names of an experiment and of one of its arms."""


class Arms(NamedTuple):
    """The arms of a request. names: the arm by experiment, `INTERLEAVED` for one that mixes both arms.

    ways: the ways to make the list, one, or the two that are mixed. Each has the arms that apply.
    """

    names: Mapping[str, str]
    ways: tuple[tuple[Key, ...], ...]


NO_ARMS = Arms({}, ((),))


class Experiment(NamedTuple):
    """An experiment, ready to be assigned. start, end: Unix seconds.

    where: None for all requests. ranked_only: whether it has lists of /v1/rank only, because an arm has the order in
    which the candidates were sent.
    """

    name: str
    config: ExperimentConfig
    assignment: Assignment
    arms: tuple[str, ...]
    start: float
    end: float
    where: RequestCondition | None
    ranked_only: bool

    @classmethod
    def of(cls, name: str, config: ExperimentConfig) -> Experiment:
        """An experiment of the configuration."""
        return cls(
            name,
            config,
            Assignment.of(name, config),
            tuple(config.arms),
            -math.inf if config.start is None else config.start.timestamp(),
            math.inf if config.end is None else config.end.timestamp(),
            None if config.where is None else compile_for_requests(config.where, f"experiments.{name}.where"),
            any(arm.order == "shown" for arm in config.arms.values()),
        )

    def runs(self, at: float) -> bool:
        """True between start and end. at: Unix seconds."""
        return self.start <= at < self.end


class ExperimentTable:
    """The experiments of the configuration.

    of_users: whether any assigns users. reads_attributes: whether the condition of any may read attributes of users.
    """

    def __init__(self, configs: Mapping[str, ExperimentConfig]) -> None:
        self.experiments = tuple(Experiment.of(name, config) for name, config in configs.items())
        self.by_name = {one.name: one for one in self.experiments}
        self.of_users = any(one.config.unit == "user" for one in self.experiments)
        self.reads_attributes = any(one.where is not None for one in self.experiments)

    def __bool__(self) -> bool:
        """False without experiments."""
        return bool(self.experiments)

    def arm(self, key: Key) -> ArmConfig:
        """The configuration of an arm."""
        return self.by_name[key[0]].config.arms[key[1]]

    def arms_of(
        self,
        request: RankRequest | RecommendRequest,
        user: int | None,
        attributes: Mapping[str, Scalar] | None,
        at: float,
        usable: Callable[[str], bool],
    ) -> Arms:
        """The arms of a request.

        user: unit of the user, None without one. attributes: of the user, None if they could not be read; experiments
        whose condition needs them are then left out. at: Unix seconds. usable: whether an experiment can be served.
        """
        names, keys, mixed = dict[str, str](), list[Key](), None
        values: Mapping[str, Scalar] | None = None
        session: int | None = None
        for one in self.experiments:
            config = one.config
            if not one.runs(at) or (config.placements and request.placement not in config.placements):
                continue
            if one.ranked_only and not (isinstance(request, RankRequest) and request.ids is not None):
                continue
            if config.unit == "session" and session is None and request.session_id is not None:
                session = unit_hash(request.session_id)
            unit = user if config.unit == "user" else session
            if unit is None or (arm := one.assignment.arm(unit)) < 0 or not usable(one.name):
                continue
            if one.where is not None:
                values = _values(request, attributes) if values is None else values
                # A user whose attributes could not be read must not be taken for one who has none.
                if (attributes is None and not one.where.names <= values.keys()) or not one.where.holds(values, at):
                    continue
            if config.interleave:
                names[one.name], mixed = INTERLEAVED, one
            else:
                names[one.name] = one.arms[arm]
                keys.append((one.name, one.arms[arm]))
        if not names:
            return NO_ARMS
        both = ((),) if mixed is None else tuple(((mixed.name, arm),) for arm in mixed.arms)
        return Arms(names, tuple((*keys, *more) for more in both))


def _values(request: RankRequest | RecommendRequest, attributes: Mapping[str, Scalar] | None) -> dict[str, Scalar]:
    """The values that a condition may read, without missing ones. A candidate's columns are not of the request."""
    sent = {name: value for name, value in request.columns.items() if not isinstance(value, list)}
    own = {"device": request.device, "query": (request.query or "").strip() or None, "placement": request.placement}
    return {n: v for n, v in {**(attributes or {}), **sent, **own}.items() if v is not None}
