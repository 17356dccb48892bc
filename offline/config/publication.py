"""Publication gate for new releases, and retention of old ones."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class GateConfig(BaseModel):
    """Limits that a new release must meet to be published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["auto", "ask", "shadow"] = Field(
        "auto",
        description="auto: publish a release that passes the gate. ask: wait for approval. shadow: score it next to "
        "the live release without publishing it.",
    )
    margin: float = Field(
        0.005, ge=0, lt=1, description="Loss in ndcg@10 that is accepted without asking for approval."
    )
    slice_margin: float = Field(
        0.03, ge=0, lt=1, description="Loss in ndcg@10 on one slice, if significant, that blocks the release."
    )
    slice_lists: int = Field(100, ge=2, description="Minimum number of lists for a slice to be compared.")
    collapse: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of its original lead over a random order that the live release must keep on the test lists. "
        "If it keeps less, the labels are suspect, and the live release stays live.",
    )
    calibration: float = Field(
        0.1, gt=0, le=1, description="Mean error of click probabilities above which the gate asks for approval."
    )
    size_ratio: float = Field(
        2.0, gt=0, description="Size relative to the live release above which the gate asks for approval."
    )
    latency_ratio: float = Field(
        1.5, gt=0, description="Ranking time relative to the live release above which the live release stays live."
    )
    certainty: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="Probability that the trained ranker is better than the best simple order, by a bootstrap over "
        "the users of the test lists, below which the release ranks by that order. If the live ranker is trained, a "
        "higher mean is enough. 0: always the trained ranker.",
    )
    fallback_nights: int = Field(
        14,
        ge=0,
        le=10_000,
        description="Number of nights in a row that may publish a simple order. After them the live release stays "
        "live, until a trained ranker is better or somebody raises the number.",
    )
    candidates: int = Field(500, ge=1, le=5000, description="Candidates per request when ranking is timed.")


class RetentionConfig(BaseModel):
    """Retention of releases, runs and collected log. The live release and the one before it are always kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: int = Field(5, ge=2, le=10_000, description="Number of newest releases to keep.")
    runs: int = Field(5, ge=1, le=10_000, description="Number of newest run directories to keep.")
    vector_days: int = Field(
        30, ge=1, le=36_500, description="Days to keep the vectors of texts that no kept run uses."
    )
    log_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        examples=[90],
        description="Days of collected log to keep before the cut-off of the oldest release. null: keep all.",
    )
