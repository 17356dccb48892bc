"""The text encoder's section of the config. Reading a config must not load torch, so it stands by itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from text_encoder.scalars import LogTo
from text_encoder.text import attributes

MINILM = "minilm"
"""The name of the MiniLM-L6-v2 that a package carries: it needs no model hub."""


TEMPLATE = "{title}. {brand}. {category}. {attributes}. {description}"
"""With an item's tags and texts: they raised ndcg@10 on films from .436 to .473 (docs/decisions.md)."""


class EncoderConfig(BaseModel):
    """The text encoder and how it is fine-tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(MINILM, min_length=1, description="a model directory, a hub name, or 'minilm', the packaged one")
    template: str = Field(
        TEMPLATE,
        description="item text, columns in braces, {attributes} for all that are not standard; also the prompt",
    )
    max_tokens: int | None = Field(
        96, ge=8, description="tokens read of a text at most; null is all the model reads, at its price"
    )
    token_percentile: float = Field(
        95.0, gt=0, le=100, description="the cap is lowered to what this many percent of the catalogue's texts have"
    )
    mode: Literal["frozen", "projection", "last_layers", "lora", "full"] = Field(
        "projection",
        description="what is trained: nothing, a small network over cached vectors, and after it the top layers, "
        "low-rank adapters on these, or all weights",
    )
    hidden: int = Field(384, ge=0, le=8192, description="width of the projection's hidden layer; 0 is a linear map")
    n_layers: int = Field(2, ge=1, description="layers from the top that modes last_layers and lora train")
    lora_rank: int = Field(16, ge=1, le=1024, description="inner width of the adapters of mode lora")
    warm_up_epochs: int = Field(
        0,
        ge=0,
        le=100,
        description="passes over the item texts, guessing hidden words, before all else and in half the time at most",
    )
    budget_s: float = Field(
        600.0, gt=0, description="seconds for all of it; where reading the catalogue alone takes longer, an error"
    )
    refreshes: int = Field(
        3,
        ge=0,
        le=100,
        description="times it is made anew after its own window, evenly up to the test, always from what came before; "
        "0 keeps the first",
    )
    epochs: int = Field(40, ge=1, le=1000, description="passes at most, of each stage")
    patience: int = Field(4, ge=1, description="epochs without a better state after which training stops")
    examples_per_epoch: int = Field(
        100_000, ge=1, description="drawn anew each epoch; the unit of validation and of checkpoints"
    )
    most_examples: int = Field(
        500_000, ge=1, description="engagements that are learnt from, the newest, whatever the length of the log"
    )
    batch_size: int = Field(1024, ge=2, description="examples a step, mode projection")
    random_negatives: int = Field(
        256, ge=0, le=100_000, description="items drawn evenly from the catalogue that join a step's candidates"
    )
    batch_texts: int = Field(256, ge=2, description="items a step, where texts are read to train layers")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of Adam, for the projection")
    layer_learning_rate: float | None = Field(
        None, gt=0, le=1, description="of Adam, for layers; default 2e-5, for adapters 2e-4"
    )
    weight_decay: float = Field(0.0, ge=0, le=1000, description="decay towards the encoder as it came, times the rate")
    temperature: float = Field(0.1, gt=0, le=10, description="cosines are divided by it")
    log_q: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of an item's popularity that vectors explain; less serves rare items and leaves the rest "
        "to the ranker, 1 is the plain softmax over all items",
    )
    skipped_weight: float = Field(1.0, ge=0, le=100, description="weight of target against the skips of its list")
    validation_share: float = Field(0.1, gt=0, lt=1, description="the last part of the examples by time, to choose by")
    log_to: LogTo = Field("tensorboard", description="where each epoch's numbers go; files stand with the checkpoints")
    seed: int = Field(0, ge=0, lt=2**32, description="of the draws of examples")

    @field_validator("template")
    @classmethod
    def _readable(cls, template: str) -> str:
        attributes(template)
        return template

    @property
    def layer_rate(self) -> float:
        """The learning rate of layers or adapters, given or by mode."""
        return self.layer_learning_rate or (2e-4 if self.mode == "lora" else 2e-5)
