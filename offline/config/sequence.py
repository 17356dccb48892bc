"""Configuration of the sequence model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SequenceConfig(BaseModel):
    """Parameters of the sequence model, which reads the order of a user's engagements."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(
        0,
        ge=0,
        le=1000,
        description="Epochs of training after each training of the encoder, such as 20. "
        "0: no sequence model is trained.",
    )
    events_per_epoch: int = Field(
        100_000, ge=1, description="Maximum number of engagements per epoch, of users sampled for each epoch."
    )
    budget_s: float = Field(
        600.0,
        gt=0,
        description="Budget in seconds for training, of processor time of the thread that trains. Training stops "
        "early if it is used up.",
    )
    most_events: int = Field(
        1_000_000,
        ge=2,
        description="Maximum number of engagements to train on. If the log contains more, use the newest.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed of the training.")
