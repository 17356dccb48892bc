"""The simulated shop: size, traffic and taste."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

POSITION_BIAS = 0.3


class SimulateConfig(BaseModel):
    """Size, span and seed of a simulated shop. The same values give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(17, ge=0, description="everything random follows from it")
    items: int = Field(600, ge=2, le=1_000_000, description="products on the opening day")
    users: int = Field(800, ge=1, le=1_000_000, description="shoppers who may come; those who never do leave no trace")
    days: int = Field(21, ge=1, le=3650, description="length of the log in days")
    lists_per_user_day: float = Field(0.22, gt=0, le=50, description="lists shown per shopper and day, on average")
    list_length: int = Field(24, ge=2, le=240, description="items in a list; at most `items`")
    ahead: int = Field(
        0, ge=0, le=3650, description="days after the log that the shop is drawn for, not written: for whoever plays on"
    )
    new_items_per_day: float = Field(4, ge=0, le=100_000, description="products that arrive each day, on average")
    explore: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of the lists put in a random order, and their propensities logged; 0 logs none",
    )
    position_bias: float = Field(
        POSITION_BIAS,
        ge=0,
        le=5,
        allow_inf_nan=False,
        description="place k, from 0, is looked at with chance (1 + k)^-position_bias; 0: every place always",
    )
    searches: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of the lists that answer words a shopper typed, which are logged; 0 logs none",
    )
    end: AwareDatetime = Field(datetime(2026, 6, 1, tzinfo=UTC), description="end of the last day: midnight UTC")

    @field_validator("end")
    @classmethod
    def _midnight(cls, end: datetime) -> datetime:
        # The year first: moving year 1 or 9999 between zones overflows.
        if not 2000 <= end.year <= 2200 or end.astimezone(UTC).time() != time.min:
            raise ValueError(f"is {end.isoformat()}; must be midnight UTC of 2000 to 2200, as 2026-06-01T00:00:00Z")
        return end.astimezone(UTC)

    @model_validator(mode="after")
    def _enough_items(self) -> Self:
        if self.items < self.list_length:
            raise ValueError(f"items is {self.items}, below list_length {self.list_length}: lists cannot be filled")
        return self

    @property
    def start(self) -> datetime:
        """The beginning of the first day."""
        return self.end - timedelta(days=self.days)
