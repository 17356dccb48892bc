"""Limits of the data checks that run before a nightly run trains anything."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

CHECKS = (
    "schema",
    "disk",
    "future",
    "age",
    "clock",
    "volume",
    "click_rate",
    "duplicates",
    "keys",
    "nulls",
    "bot",
    "catalogue",
    "categories",
    "prices",
    "input_drift",
    "feature_drift",
)


class CheckConfig(BaseModel):
    """Limits of the data checks. Once you have looked at the data, list a check in `accept` to let the run pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accept: tuple[str, ...] = Field(
        (),
        examples=[["volume", "prices"]],
        description=f"Checks that only warn instead of stopping: {', '.join(CHECKS)}.",
    )
    future_s: float = Field(300.0, ge=0, description="Seconds ahead of the clock at which an event is in the future.")
    max_age_s: float | None = Field(
        None, gt=0, examples=[172800], description="Maximum age of the newest event, in seconds. null: no limit."
    )
    before_list: float = Field(
        0.02, ge=0, le=1, description="Maximum share of the last day's actions that are logged before their list."
    )
    volume_low: float = Field(
        0.5, ge=0, le=1, description="Minimum events on the last day, relative to the lowest of the previous days."
    )
    volume_high: float = Field(
        2.0, ge=1, description="Maximum events on the last day, relative to the highest of the previous days."
    )
    history_days: int = Field(4, ge=2, le=27, description="Previous days needed before volumes are checked.")
    click_rate: float = Field(
        2.0, gt=1, description="Maximum factor by which the last day's click rate may rise or fall."
    )
    repeated: float = Field(
        0.5, gt=0, le=1, description="Maximum share of a day's events that occur in the log a second time."
    )
    several_users: float = Field(
        0.01, ge=0, le=1, description="Maximum share of lists with events of more than one user."
    )
    null_rise: float = Field(
        0.2, gt=0, le=1, description="Maximum rise of a column's share of missing values since the last nightly run."
    )
    unknown_items: float = Field(
        0.5, gt=0, le=1, description="Maximum share of events whose item is not in the catalogue."
    )
    bot_share: float = Field(0.2, gt=0, le=1, description="Maximum share of the last day's actions made by one user.")
    bot_actions: int = Field(
        100, ge=1, description="Actions on the last day below which a user is never reported as a bot."
    )
    items_low: float = Field(0.7, ge=0, le=1, description="Minimum number of items, relative to the last nightly run.")
    items_high: float = Field(3.0, ge=1, description="Maximum number of items, relative to the last nightly run.")
    category_items: int = Field(
        5, ge=1, description="Minimum number of items of a category in the last nightly run for it to be checked."
    )
    category_low: float = Field(
        0.2, ge=0, le=1, description="Minimum number of items in a category, relative to the last nightly run."
    )
    price_factor: float = Field(
        2.0, gt=1, description="Maximum factor by which the median price may rise or fall since the last nightly run."
    )
    text_low: float = Field(0.5, ge=0, le=1, description="Minimum mean text length, relative to the last nightly run.")
    input_drift: float = Field(
        1.0,
        gt=0,
        description="Maximum PSI (population stability index) of an input between the last day and the week before. "
        "Values up to twice the largest PSI between the days of that week are ignored.",
    )
    feature_drift: float = Field(
        2.0, gt=0, description="Maximum PSI of a feature between the test lists and the training lists."
    )
    drifted_features: float = Field(
        0.5, gt=0, le=1, description="Share of features beyond feature_drift that stops the nightly run."
    )
    free_disk: float = Field(
        1.2,
        ge=0,
        description="Minimum free disk space, relative to what this run needs to become as large as the largest other "
        "run. 0: not checked.",
    )
