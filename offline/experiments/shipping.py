"""Steps that make an arm the default of the shop, and when they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from offline.experiments.analysis import BETTER, Report
from offline.runtime import Failure


class Shipment(NamedTuple):
    """What to do. release: the ID of the release to promote, None for none. settings: YAML to change in the
    configuration, empty for none. problems: what spoke against it, if it is forced."""

    arm: str
    release: str | None
    settings: str
    problems: tuple[str, ...]


def decide(
    report: Report, placements: Mapping[str, Mapping[str, Any]], arm: str | None = None, force: bool = False
) -> Shipment:
    """The shipment of the best arm, or of `arm`.

    placements: those of the configuration, as plain values. Raises Failure, saying why, if the result does not support
    the arm, unless `force`; and always if there is no setting that does what the arm did.
    """
    design = report.design
    chosen = arm or report.verdict.arm
    if chosen is None:
        raise Failure(
            f"{design.name}: {report.verdict.text} There is no arm to ship; to ship one anyway, use --arm and --force"
        )
    if chosen not in design.arms:
        raise Failure(f"--arm {chosen}: {design.name} has the arms {', '.join(design.arms)}")
    problems = _problems(report, chosen)
    if problems and not force:
        raise Failure(f"{design.name}: not shipping {chosen}. {' '.join(problems)} To ship it anyway, use --force")
    changes = dict((design.changes or {}).get(chosen, {}))
    release = changes.pop("release", None)
    if "order" in changes:
        raise Failure(
            f"{chosen} shows the order {changes['order']!r}: no setting makes that the default. Stop calling the "
            "service for these lists, or roll back to a release that you trust"
        )
    return Shipment(chosen, release, _settings(report, changes, placements) if changes else "", tuple(problems))


def _problems(report: Report, arm: str) -> list[str]:
    verdict = report.verdict
    if report.ratio.alarm:
        return ["The sample ratio does not fit the shares, so the result means nothing."]
    out = []
    if verdict.outcome != BETTER:
        out.append(f"It is not certain to be better. {verdict.text}")
    elif verdict.arm != arm:
        out.append(f"{verdict.arm} is the best arm. {verdict.text}")
    elif verdict.harmed:
        out.append(f"It is worse in {', '.join(verdict.harmed)}.")
    return out


def _settings(report: Report, changes: Mapping[str, Any], placements: Mapping[str, Mapping[str, Any]]) -> str:
    """The changes of an arm as settings of the experiment's placements. Rules are added to those of the placement."""
    names = report.design.placements or tuple(placements)
    if not names:
        raise Failure(
            f"the arm changes {', '.join(changes)}, which are settings of a placement, but {report.design.name} names "
            "no placement and the configuration has none: add a placement with these settings, and send its name in "
            "requests"
        )
    out: dict[str, Any] = {}
    for name in names:
        settings = dict(changes)
        before = placements.get(name, {}).get("rules") or {}
        if "rules" in settings:
            settings["rules"] = _added(before, settings["rules"], name)
        out[name] = settings
    return str(yaml.safe_dump({"placements": out}, sort_keys=False, allow_unicode=True))


def _added(before: Mapping[str, Any], more: Mapping[str, Any], placement: str) -> dict[str, Any]:
    """The rules of a placement and those of an arm after them."""
    out = dict(before)
    for kind, rules in more.items():
        if kind in before and not (isinstance(rules, list) and isinstance(before[kind], list)):
            raise Failure(f"placements.{placement}.rules.{kind} and the arm both have a value: choose one by hand")
        out[kind] = [*before[kind], *rules] if kind in before else rules
    return out
