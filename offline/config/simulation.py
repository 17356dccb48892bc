"""The simulated shop: size, traffic and taste."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

POSITION_BIAS = 0.3


class SimulateConfig(BaseModel):
    """Size, time span and seed of a simulated shop. The same values write the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(17, ge=0, description="Seed of every random draw.")
    items: int = Field(600, ge=2, le=1_000_000, description="Products on the first day.")
    users: int = Field(
        800, ge=1, le=1_000_000, description="Potential shoppers. Those who never visit are not in the data."
    )
    days: int = Field(21, ge=1, le=3650, description="Length of the log in days.")
    lists_per_user_day: float = Field(0.22, gt=0, le=50, description="Mean number of lists shown per shopper and day.")
    list_length: int = Field(24, ge=2, le=240, description="Items in a list. At most `items`.")
    ahead: int = Field(
        0,
        ge=0,
        le=3650,
        description="Days after the log that the shop can be simulated further. They are not written to the data.",
    )
    new_items_per_day: float = Field(4, ge=0, le=100_000, description="Mean number of products added per day.")
    explore: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the lists shown in random order. Above 0, propensities are logged.",
    )
    position_bias: float = Field(
        POSITION_BIAS,
        ge=0,
        le=5,
        allow_inf_nan=False,
        description="Exponent of position bias: a shopper examines position k, counted from 0, with probability "
        "(1 + k)^-position_bias. 0: no bias.",
    )
    searches: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the lists that are search results, with the query logged. 0: no queries.",
    )
    margins: bool = Field(
        False,
        description="Whether items have the attribute `margin`, the profit per sale in the currency of the price. It "
        "has no effect on shoppers. Set `features.attributes.margin` to `value`, so that it is not a feature.",
    )
    complements: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Probability that a shopper who puts an item of a list into the cart adds one that goes with it, "
        "of another department, which they find without a list. 0: nothing goes together.",
    )
    language: Literal["en", "zh"] = Field(
        "en",
        description="Language of titles, descriptions, categories, brands, tags and queries: English or Chinese. All "
        "else is the same.",
    )
    end: AwareDatetime = Field(datetime(2026, 6, 1, tzinfo=UTC), description="End of the last day, at midnight UTC.")

    @field_validator("end")
    @classmethod
    def _midnight(cls, end: datetime) -> datetime:
        # Check the year first: converting year 1 or 9999 between time zones overflows.
        if not 2000 <= end.year <= 2200 or end.astimezone(UTC).time() != time.min:
            raise ValueError(
                f"is {end.isoformat()}; must be midnight UTC in 2000 to 2200, such as 2026-06-01T00:00:00Z"
            )
        return end.astimezone(UTC)

    @model_validator(mode="after")
    def _enough_items(self) -> Self:
        if self.items < self.list_length:
            raise ValueError(f"items is {self.items}, below list_length {self.list_length}: lists cannot be filled")
        return self

    @property
    def start(self) -> datetime:
        """Start of the first day."""
        return self.end - timedelta(days=self.days)
