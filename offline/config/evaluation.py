"""Slices of the test lists with metrics of their own."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SliceConfig(BaseModel):
    """Extra slices of the test lists, in addition to the built-in ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(
        (),
        max_length=20,
        examples=[["category", "device"]],
        description="Columns of items or events, such as category, brand or device. Each value is a slice.",
    )
