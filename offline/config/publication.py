"""What a release must show before it is published, and how long old ones are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


class RetentionConfig(BaseModel):
    """What a night removes when it is done. The live release and the one before it always stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: int = Field(5, ge=2, le=10_000, description="newest releases that are kept")
    runs: int = Field(5, ge=1, le=10_000, description="newest run directories that are kept")
    log_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="days of collected log kept before the cut-off of the oldest release that is there; null: all",
    )
