"""The text encoder's section of the config. Reading a config must not load torch, so it stands by itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from text_encoder.text import DEFAULT_TEMPLATE, attributes

MINILM = "minilm"
"""The name of the MiniLM-L6-v2 that a package carries: it needs no model hub."""


class EncoderConfig(BaseModel):
    """The text encoder and how it is fine-tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(MINILM, min_length=1, description="a model directory, a hub name, or 'minilm', the packaged one")
    template: str = Field(DEFAULT_TEMPLATE, description="item text, attributes in braces; a model's prompt goes here")
    max_tokens: int | None = Field(
        96, ge=8, description="tokens read of a text at most; null is all the model reads, at its price"
    )
    token_percentile: float = Field(
        95.0, gt=0, le=100, description="the cap is lowered to what this many percent of the catalogue's texts have"
    )
    mode: Literal["frozen", "projection", "last_layers", "full"] = Field(
        "projection", description="what is trained: nothing, a linear map over cached vectors, the top layers, all"
    )
    n_layers: int = Field(2, ge=1, description="layers from the top that mode last_layers trains")
    budget_s: float = Field(600.0, gt=0, description="seconds for all of it, reading the catalogue included")
    epochs: int = Field(40, ge=1, le=1000, description="passes over the examples at most")
    patience: int = Field(4, ge=1, description="epochs without a better state after which training stops")
    examples_per_epoch: int = Field(
        100_000, ge=1, description="drawn anew each epoch; the unit of validation and of checkpoints"
    )
    batch_size: int = Field(1024, ge=2, description="examples a step, mode projection")
    random_negatives: int = Field(
        256, ge=0, le=100_000, description="items drawn evenly from the catalogue that join a step's candidates"
    )
    batch_texts: int = Field(256, ge=2, description="distinct target items a step, modes last_layers and full")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="of Adam; default 1e-3 for projection, 2e-5 for layers"
    )
    weight_decay: float = Field(0.0, ge=0, le=1000, description="decay towards the encoder as it came, times the rate")
    temperature: float = Field(0.1, gt=0, le=10, description="cosines are divided by it")
    log_q: float = Field(1.0, ge=0, le=1, description="strength of the correction for popular items; 1 is the theory's")
    skipped_weight: float = Field(0.2, ge=0, le=100, description="weight of target against the skips of its list")
    validation_share: float = Field(0.1, gt=0, lt=1, description="the last part of the examples by time, to choose by")
    seed: int = Field(0, ge=0, lt=2**32, description="of the draws of examples")

    @field_validator("template")
    @classmethod
    def _readable(cls, template: str) -> str:
        attributes(template)
        return template

    @property
    def rate(self) -> float:
        """The learning rate, given or by mode."""
        return self.learning_rate or (1e-3 if self.mode == "projection" else 2e-5)
