"""How the log is divided in time: what encoder and ranker learn from, and what they are judged on."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Protocol = Literal["time-split", "leave-last-out", "given-lists"]


PROTOCOLS: tuple[str, ...] = get_args(Protocol)


class WindowConfig(BaseModel):
    """Shares of the lists, in time order; they add up to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol = Field(
        "time-split",
        description="time-split: the last lists of the shop are the test; leave-last-out: each user's last basket is, "
        "the one before it validation, and `encoder` and `ranker` share the rest; given-lists: time-split, logged only",
    )
    encoder: float = Field(0.15, gt=0, lt=1, description="what the first text encoder learns from, and state warms by")
    ranker: float = Field(0.55, gt=0, lt=1, description="what the ranker learns from")
    validation: float = Field(0.1, gt=0, lt=1, description="what training is stopped and chosen by")
    test: float = Field(0.2, gt=0, lt=1, description="what is reported, and never looked at before")

    @model_validator(mode="after")
    def _whole(self) -> WindowConfig:
        total = self.encoder + self.ranker + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}; encoder + ranker + validation + test must be 1")
        return self
