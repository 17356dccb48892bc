"""What the gate says: publish, keep the live release, or ask a person; with reasons, and what the rules hold to.

Apart from `gate.py`, which compares, because the configuration must not load what comparing needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

PROMOTE, ASK, KEEP = "promote", "ask", "keep"
_SEVERITY = (PROMOTE, ASK, KEEP)


class GateConfig(BaseModel):
    """What a new release must show before it is published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["auto", "ask", "shadow"] = Field(
        "auto", description="auto: publish what passes; ask: leave it to a person; shadow: score it beside the live one"
    )
    margin: float = Field(0.005, ge=0, lt=1, description="ndcg@10 that may be lost without a person being asked")
    slice_margin: float = Field(0.03, ge=0, lt=1, description="ndcg@10 that a slice may lose, beyond chance")
    slice_lists: int = Field(100, ge=2, description="lists below which a slice is not judged")
    collapse: float = Field(
        0.5, gt=0, lt=1, description="share of its lead over a random order that the live release must still have"
    )
    calibration: float = Field(0.1, gt=0, le=1, description="mean error of click probabilities at most, else ask")
    size_ratio: float = Field(2.0, gt=0, description="bytes of the release, of the live one's; more: ask")
    latency_ratio: float = Field(1.5, gt=0, description="time to rank, of the live one's; more: keep")
    candidates: int = Field(500, ge=1, le=5000, description="candidates of the requests that are timed")


class Reason(NamedTuple):
    """What one rule says: its name, its verdict, and why."""

    rule: str
    verdict: str
    message: str


class Kept(Exception):
    """The gate kept the live release; the message says why. Exit status 3."""

    status = 3


class Asked(Exception):
    """The gate leaves it to a person; the message says why, and how to decide. Exit status 6."""

    status = 6


def sternest(reasons: Sequence[Reason], config: GateConfig) -> tuple[str, list[Reason]]:
    """The sternest of the reasons' verdicts, and the reasons, those that decided first."""
    out = list(reasons)
    if config.mode == "ask":
        out.append(Reason("mode", ASK, "the configuration leaves every release to a person (gate.mode: ask)"))
    if config.mode == "shadow":
        out.append(Reason("mode", KEEP, "only scored beside the live release (gate.mode: shadow), see shadow.parquet"))
    out.sort(key=lambda r: -_SEVERITY.index(r.verdict))
    return (out[0].verdict if out else PROMOTE), out


def raise_unless_promoted(found: Mapping[str, Any]) -> None:
    """Raises Kept or Asked, with every reason that led to it, for what the gate wrote."""
    if found["verdict"] == PROMOTE:
        return
    causes = "\n".join(f"  {rule}: {why}" for rule, verdict, why in found["reasons"] if verdict == found["verdict"])
    how = f"shelfwise releases diff {found['live'] or ''} {found['candidate']}".replace("  ", " ")
    if found["verdict"] == KEEP:
        raise Kept(f"the gate keeps the live release {found['live'] or '(none)'}\n{causes}\ncompare: {how}")
    raise Asked(
        f"the gate asks whether {found['candidate']} may replace {found['live'] or 'no release'}\n{causes}\n"
        f"compare: {how}; then: shelfwise releases promote {found['candidate']}"
    )
