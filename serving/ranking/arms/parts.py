"""The rules and objectives of arms, compiled for one release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from features.catalogue import Catalogue
from ranker.calibration import Maps
from serving.config import ExperimentConfig
from serving.experiments import Key
from serving.ranking.exploration import check_exploration
from serving.ranking.objective import Objective
from serving.rules import Attributes, Plan, RuleError


class ArmParts(NamedTuple):
    """Settings that arms change, by experiment and arm.

    plans: of arms with rules. objectives: of arms with an objective; None for one of weight 0. set_aside: why an
    experiment cannot be served by this release, by its name.
    """

    plans: Mapping[Key, Plan]
    objectives: Mapping[Key, Objective | None]
    set_aside: Mapping[str, str]


NO_PARTS = ArmParts({}, {}, {})


def compile_arms(
    experiments: Mapping[str, ExperimentConfig], attributes: Attributes, maps: Maps, catalogue: Catalogue
) -> ArmParts:
    """Compile all arms. Never fails: an experiment that the release cannot serve is set aside as a whole, so that its
    arms keep their shares. maps: the calibration of the release."""
    plans, objectives, set_aside = dict[Key, Plan](), dict[Key, Objective | None](), dict[str, str]()
    for name, experiment in experiments.items():
        for arm, config in experiment.arms.items():
            path, key = f"experiments.{name}.arms.{arm}", (name, arm)
            try:
                plan = Plan.of(config.rules, attributes, f"{path}.rules")
                if plan is not None:
                    plans[key] = plan
                check_exploration(config.explore, maps, f"{path}.explore")
                if (wanted := config.objective) is not None:
                    weighs = wanted.weight > 0
                    objectives[key] = Objective.of(wanted, maps, catalogue, f"{path}.objective") if weighs else None
            except RuleError as e:
                set_aside[name] = f"{e.path}: {e}"
    return ArmParts(plans, objectives, set_aside)
