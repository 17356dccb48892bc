"""Configuration of the text encoder, in a module of its own so that reading a config does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from text_encoder.scalars import LogTo
from text_encoder.text import attributes

MINILM = "minilm"
"""Name of the MiniLM-L6-v2 model that is installed as a package and needs no download from a model hub."""
AUTO = "auto"
"""Chooses between the two packaged models by the language of the catalogue."""
MULTILINGUAL = "multilingual"
"""Name of the multilingual-e5-small model, which is also installed as a package."""


TEMPLATE = "{title}. {brand}. {category}. {attributes}. {description}"
"""Includes the item's other text attributes, which raised ndcg@10 on films from .436 to .473 (docs/decisions.md)."""


class EncoderConfig(BaseModel):
    """Parameters of the text encoder and its fine-tuning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        AUTO,
        min_length=1,
        description="The base model: a model directory, a name on the Hugging Face hub, 'minilm' for the packaged "
        "MiniLM-L6-v2, which is trained on English, or 'multilingual' for the packaged multilingual-e5-small. 'auto' "
        "is multilingual if the catalogue is not in English and its package is installed, else minilm.",
    )
    template: str = Field(
        TEMPLATE,
        description="Template of the item text, with column names in braces. {attributes} stands for all text columns "
        "that are not standard columns. If the model needs a prompt, include it here.",
    )
    max_tokens: int | None = Field(
        96,
        ge=8,
        description="Maximum number of tokens to read from each text. null reads as many as the model supports, which "
        "takes longer.",
    )
    token_percentile: float = Field(
        95.0,
        gt=0,
        le=100,
        description="Lower max_tokens to this percentile of the token counts of the texts in the catalogue.",
    )
    mode: Literal["frozen", "projection", "last_layers", "lora", "full"] = Field(
        "projection",
        description="The weights to train. frozen: none. projection: a small network on top of the model. "
        "last_layers, lora and full: first the projection, then the top layers, low-rank adapters of the top layers, "
        "or all weights.",
    )
    hidden: int = Field(
        384, ge=0, le=8192, description="Width of the hidden layer of the projection. 0 makes the projection linear."
    )
    n_layers: int = Field(2, ge=1, description="Number of top layers to train in the modes last_layers and lora.")
    lora_rank: int = Field(16, ge=1, le=1024, description="Rank of the adapters in mode lora.")
    budget_s: float = Field(
        600.0,
        gt=0,
        description="Budget in seconds for training, of processor time of the thread that trains: about the time on "
        "the wall on a machine that does nothing else. Reading the texts is not included.",
    )
    read_s: float | None = Field(
        None,
        gt=0,
        examples=[600],
        description="Maximum time in seconds for reading new item texts, those with most events first. Items whose "
        "text is not read in time have no text vector in this run, and a later run reads them. null reads all texts.",
    )
    refreshes: int = Field(
        3,
        ge=0,
        le=100,
        description="Number of times to retrain the encoder after the encoder window, at even intervals up to the test "
        "window, each time on all events before that time. 0 trains it once.",
    )
    epochs: int = Field(40, ge=1, le=1000, description="Maximum number of epochs of each training stage.")
    patience: int = Field(
        4, ge=1, description="Stop a training stage after this many epochs without a better validation score."
    )
    examples_per_epoch: int = Field(
        100_000,
        ge=1,
        description="Maximum number of examples per epoch, sampled for each epoch. After each epoch, the encoder is "
        "validated and a checkpoint is written.",
    )
    most_examples: int = Field(
        500_000, ge=1, description="Maximum number of training examples. If the log contains more, use the newest."
    )
    batch_size: int = Field(
        1024, ge=2, description="Number of examples per batch. The projection is trained on one batch per step."
    )
    random_negatives: int = Field(
        256,
        ge=0,
        le=100_000,
        description="Number of items to sample uniformly from the catalogue as additional negatives for each batch.",
    )
    batch_texts: int = Field(256, ge=2, description="Number of items per step when training layers or adapters.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Learning rate of the projection (Adam).")
    layer_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        examples=[1e-4],
        description="Learning rate of layers or adapters (Adam). null means 2e-4 in mode lora and 2e-5 otherwise.",
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1000, description="Decay towards the initial weights, multiplied by the learning rate."
    )
    temperature: float = Field(
        0.1, gt=0, le=10, description="Temperature of the softmax. Cosine similarities are divided by it."
    )
    log_q: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the popularity of items that the vectors learn. 1 trains the plain softmax over all "
        "items. Lower values improve the vectors of rare items and leave popularity to the ranker.",
    )
    skipped_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Weight of the loss term that compares the target with skipped items of the same list. 0 disables "
        "the term.",
    )
    validation_share: float = Field(
        0.1, gt=0, lt=1, description="Share of the examples, the latest in time, to use for validation."
    )
    log_to: LogTo = Field(
        "tensorboard",
        description="Where to log the metrics of each epoch. TensorBoard files go into the checkpoint directory.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed of the training.")

    @field_validator("template")
    @classmethod
    def _valid_template(cls, template: str) -> str:
        attributes(template)
        return template

    @property
    def layer_rate(self) -> float:
        """Learning rate of layers or adapters: `layer_learning_rate`, or the default of the mode."""
        return self.layer_learning_rate or (2e-4 if self.mode == "lora" else 2e-5)
