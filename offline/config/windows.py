"""Time windows of the log: for encoder training, ranker training, validation and test."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Protocol = Literal["time-split", "leave-last-out", "given-lists"]


PROTOCOLS: tuple[str, ...] = get_args(Protocol)


class WindowConfig(BaseModel):
    """Shares of the lists in each window, in time order. They add up to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol = Field(
        "time-split",
        description="time-split: test on the latest lists of the shop. leave-last-out: test on each user's last "
        "basket, validate on the one before it, and split the rest between `encoder` and `ranker`. given-lists: like "
        "time-split, with logged lists only.",
    )
    encoder: float = Field(
        0.15, gt=0, lt=1, description="Share for training the first text encoder and warming up item state."
    )
    ranker: float = Field(0.55, gt=0, lt=1, description="Share for training the ranker.")
    validation: float = Field(0.1, gt=0, lt=1, description="Share for early stopping and model selection.")
    test: float = Field(
        0.2, gt=0, lt=1, description="Share for the reported metrics. Not used in training or selection."
    )

    @model_validator(mode="after")
    def _whole(self) -> WindowConfig:
        total = self.encoder + self.ranker + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}; encoder + ranker + validation + test must be 1")
        return self
