"""Placements: settings of the list of a request, by the name of the spot in the shop that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from msgspec import UNSET

from features.arrays import F64
from features.retrieval import SOURCES
from serving.api import DEFAULT_LIMIT, Problem, RankRequest, RecommendRequest
from serving.config import ExplorationConfig, PlacementConfig
from serving.rules import Variants


class Placement(NamedTuple):
    """The settings of a list. name: None without a placement. shares: as in `features.retrieval.merge`."""

    name: str | None
    config: PlacementConfig
    shares: F64 | None

    @classmethod
    def of(cls, name: str, config: PlacementConfig) -> Placement:
        """A placement of the configuration."""
        return cls(name, config, _shares(config))

    @property
    def unexplored(self) -> Placement:
        """The same without exploration, whatever the settings say."""
        nothing = ExplorationConfig(mode="swaps", share=0)
        return self._replace(config=self.config.model_copy(update={"explore": nothing}))

    def limit_of(self, request: RankRequest | RecommendRequest) -> int | None:
        """The maximum length of the list of a request: its own, else that of the placement, else that of the route.

        None for no maximum.
        """
        if request.limit is not None and request.limit is not UNSET:
            return request.limit
        return self.config.limit or (DEFAULT_LIMIT if isinstance(request, RecommendRequest) else None)

    def variants_of(self, requested: Variants | None, standing: Variants) -> list[tuple[str, Variants]]:
        """The settings of variants by path, those that take precedence first. standing: `serving.variants`."""
        own = [] if requested is None else [("variants", requested)]
        placed = [] if self.name is None else [(f"placements.{self.name}.variants", self.config.variants)]
        return [*own, *placed, ("serving.variants", standing)]


_NAMED = {"query": "a `query`", "items": "`items`"}
"""Parts of a request that a placement may require, in messages."""
NO_PLACEMENT = Placement(None, PlacementConfig(), None)


class PlacementTable:
    """The placements of the configuration by name."""

    def __init__(self, configs: Mapping[str, PlacementConfig]) -> None:
        self._by_name = {name: Placement.of(name, config) for name, config in configs.items()}

    def of(self, request: RankRequest | RecommendRequest) -> Placement:
        """The placement of a request, `NO_PLACEMENT` if it names none.

        Raises Problem (422) if the name is not configured, or if the request lacks what the placement requires.
        """
        if request.placement is None:
            return NO_PLACEMENT
        found = self._by_name.get(request.placement)
        if found is None:
            raise self._unknown(request.placement)
        given = {"query": (request.query or "").strip(), "items": request.items}
        for part in found.config.requires:
            if not given[part]:
                raise Problem(
                    422,
                    "placement-requires",
                    "Request lacks what its placement requires",
                    f"placement {found.name!r} requires {_NAMED[part]}, and the request has none",
                    f"Send the `{part}`, or remove `{part}` from `placements.{found.name}.requires`.",
                    part,
                )
        return found

    def _unknown(self, name: str) -> Problem:
        known = ", ".join(self._by_name)
        return Problem(
            422,
            "unknown-placement",
            "Unknown placement",
            f"{name!r} is not a placement; " + (f"the placements are {known}" if known else "none is configured"),
            "Use a configured placement, or add this one to `placements` and restart the service.",
            "placement",
        )


def _shares(config: PlacementConfig) -> F64 | None:
    if not config.sources:
        return None
    return np.array([config.sources.get(name, 0.0) for name in SOURCES])  # type: ignore[call-overload]
