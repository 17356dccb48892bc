"""The settings of a worker."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from serving.config.experiments import EXPERIMENTS, Experiments, check_experiments
from serving.config.settings import PLACEMENTS, Placements, ServingConfig


class ServiceConfig(ServingConfig):
    """The settings of the service, with the placements and the experiments."""

    placements: Placements = Field(default={}, max_length=PLACEMENTS, description="Placements by name.")
    experiments: Experiments = Field(default={}, max_length=EXPERIMENTS, description="Experiments by name.")

    @field_validator("experiments")
    @classmethod
    def _fit_together(cls, experiments: Experiments, info: ValidationInfo) -> Experiments:
        return check_experiments(experiments, info.data.get("placements", {}))
