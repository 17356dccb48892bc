"""Limits of the data checks that run before a night learns anything."""

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
    """Limits of the data checks; `accept` lets a night pass that you have looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accept: tuple[str, ...] = Field((), description=f"checks that warn and do not stop: {', '.join(CHECKS)}")
    future_s: float = Field(300.0, ge=0, description="an event this far ahead of the clock is in the future")
    max_age_s: float | None = Field(None, gt=0, description="oldest that the newest event may be; null: any age")
    before_list: float = Field(0.02, ge=0, le=1, description="share of the last day's actions before their list")
    volume_low: float = Field(0.5, ge=0, le=1, description="the last day's events, of the lowest of the days before")
    volume_high: float = Field(2.0, ge=1, description="the last day's events, of the highest of the days before")
    history_days: int = Field(4, ge=2, le=27, description="days before the last one that volumes need")
    click_rate: float = Field(2.0, gt=1, description="times the usual click rate may rise or fall on the last day")
    repeated: float = Field(0.5, gt=0, le=1, description="share of a day's rows that stand in the log once more")
    several_users: float = Field(0.01, ge=0, le=1, description="share of lists with events of more than one user")
    null_rise: float = Field(0.2, gt=0, le=1, description="rise of a column's share of missing values since last night")
    unknown_items: float = Field(0.5, gt=0, le=1, description="share of events whose item is not in the catalogue")
    bot_share: float = Field(0.2, gt=0, le=1, description="share of one user in the last day's actions")
    bot_actions: int = Field(100, ge=1, description="actions on the last day below which no user is taken for a bot")
    items_low: float = Field(0.7, ge=0, le=1, description="items, of last night's")
    items_high: float = Field(3.0, ge=1, description="items, of last night's")
    category_items: int = Field(5, ge=1, description="items that a category had last night to be missed today")
    category_low: float = Field(0.2, ge=0, le=1, description="items of a category, of last night's")
    price_factor: float = Field(2.0, gt=1, description="times the median price may rise or fall since last night")
    text_low: float = Field(0.5, ge=0, le=1, description="mean length of descriptions, of last night's")
    input_drift: float = Field(
        1.0, gt=0, description="PSI of an input on the last day against the week before, and twice its days' own"
    )
    feature_drift: float = Field(2.0, gt=0, description="PSI of a feature, test lists against those learnt from")
    drifted_features: float = Field(0.5, gt=0, le=1, description="share of features beyond it that stops the night")
    free_disk: float = Field(1.2, ge=0, description="free disk, times what the last night took; 0: not looked at")
