"""The settings of the service: one frozen value, built at startup and passed down.

They are the sections `serving`, `placements` and `experiments` of the configuration.
"""

from __future__ import annotations

from serving.config.experiments import (
    EXPERIMENTS,
    INTERLEAVED,
    ArmConfig,
    ExperimentConfig,
    ExperimentName,
    Experiments,
    Margins,
    check_experiments,
)
from serving.config.service import ServiceConfig
from serving.config.settings import (
    PLACEMENTS,
    ExplorationConfig,
    ObjectiveConfig,
    PlacementConfig,
    Placements,
    ServingConfig,
    Source,
)

__all__ = [
    "EXPERIMENTS",
    "INTERLEAVED",
    "PLACEMENTS",
    "ArmConfig",
    "ExperimentConfig",
    "ExperimentName",
    "Experiments",
    "ExplorationConfig",
    "Margins",
    "ObjectiveConfig",
    "PlacementConfig",
    "Placements",
    "ServiceConfig",
    "ServingConfig",
    "Source",
    "check_experiments",
]
