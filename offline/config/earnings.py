"""Value of purchases, and how long a list is credited with them, in earnings and in reports of experiments."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EarningsConfig(BaseModel):
    """The money of purchases in `shelfwise earnings` and `shelfwise experiments`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: int = Field(90, ge=1, le=1000, description="Days in the tables of earnings, up to the last day of the log.")
    attribution_s: float | None = Field(
        None,
        gt=0,
        le=90 * 86400,
        allow_inf_nan=False,
        examples=[604800],
        description="Seconds after a list within which a click, cart or purchase counts for it. null: "
        "`lists.attribution_s`, as in labels.",
    )
    value: Literal["amount", "quantity", "ignored"] = Field(
        "ignored",
        description="Meaning of the `value` of a purchase. amount: money paid for all its pieces; quantity: number of "
        "pieces, at the price of the catalogue; ignored: one piece at the price of the catalogue. The JavaScript "
        "client sends quantities from the dataLayer.",
    )
    margin: str | None = Field(
        None,
        min_length=1,
        examples=["margin"],
        description="Numeric attribute of items: margin of a piece at the price of the catalogue. null: no margins, "
        "unless `cost` is set.",
    )
    cost: str | None = Field(
        None,
        min_length=1,
        examples=[None],
        description="Numeric attribute of items: cost of a piece, in place of `margin`.",
    )

    @model_validator(mode="after")
    def _one_of_margin_and_cost(self) -> Self:
        if self.margin is not None and self.cost is not None:
            raise ValueError("set `margin` or `cost`, not both")
        return self
