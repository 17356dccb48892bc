"""Which parts of the test lists are reported on their own."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SliceConfig(BaseModel):
    """Parts of the test that are reported on their own, beyond those that every shop has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(
        (), max_length=20, description="columns of items or events, as category, brand, device; each value is a slice"
    )
