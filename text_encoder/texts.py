"""Encoding of all catalogue texts, with checkpoints and a time budget."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from features.arrays import F32
from text_encoder import checkpoint
from text_encoder.encoder import Encoder
from text_encoder.trainer import Clock

_CHECKPOINTS = 10
_MIN_CHECKPOINT_TEXTS = 1024

BLOCK = 512
"""Texts per block: a multiple of the batch size on any device."""


class BudgetSpent(RuntimeError):
    """The time budget ended before all texts were encoded. Training needs the vectors of all items."""


@dataclass(frozen=True)
class EncodedTexts:
    """Vectors of all items.

    vectors: float32[n, d], 0 for an item without text. readable: bool[n], items that have text. seconds: time of
    encoding, over all runs.
    """

    vectors: Tensor
    readable: np.ndarray
    seconds: float

    def with_missing(self, vectors: Tensor) -> F32:
        """float32[n, d]: the given vectors, with NaN for items without text."""
        return np.where(self.readable[:, None], vectors.numpy(), np.float32(np.nan))


class BlockMap(Protocol):
    """Maps a function over blocks of texts, in this process or on other machines."""

    def __call__(
        self, function: Callable[[Encoder, list[str]], Iterable[F32]], shared: Encoder, parts: Sequence[list[str]]
    ) -> Generator[F32, None, None]:
        """Yields the results of `function(shared, part)`, part by part. function: pure, and defined in a module."""


def map_serially(
    function: Callable[[Encoder, list[str]], Iterable[F32]], shared: Encoder, parts: Sequence[list[str]]
) -> Generator[F32, None, None]:
    """`BlockMap` in this process, one block after another."""
    for part in parts:
        yield from function(shared, part)


def _encode_block(encoder: Encoder, texts: list[str]) -> Iterator[F32]:
    return encoder.batches(texts)


def encode_texts(
    encoder: Encoder,
    texts: list[str],
    directory: Path | None,
    clock: Clock | None,
    on_texts: Callable[[int], None],
    over_blocks: BlockMap = map_serially,
) -> EncodedTexts:
    """Encodes the catalogue: each distinct text once, longest first, with about ten checkpoints in `directory`.

    The texts are encoded in blocks of whole batches, so the vectors are bit-identical wherever a block is encoded.
    clock: time budget, or None for no limit. on_texts: called with numbers of encoded texts, first with that of the
    checkpoint. Raises `BudgetSpent` if the budget ends early; a later call continues from the last checkpoint.
    """
    readable = np.array([bool(text.strip()) for text in texts], bool)
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    distinct = [distinct[i] for i in np.argsort(-encoder.token_counts(distinct), kind="stable")]
    file = directory / f"vectors-{_digest(encoder.fingerprint, distinct)}.safetensors" if directory else None
    saved = checkpoint.read(file) if file else None
    # The last row stays zero and is for items without text.
    vectors = saved[0]["vectors"] if saved else torch.zeros(len(distinct) + 1, encoder.dimension)
    array = vectors.numpy()
    done, earlier_s = (int(saved[1]["read"]), float(saved[1]["seconds"])) if saved else (0, 0.0)
    on_texts(done)
    stopwatch = Clock(float("inf"))
    stopwatch.add_earlier_run(earlier_s)
    last_checkpoint, interval = done, max(_MIN_CHECKPOINT_TEXTS, -(-len(distinct) // _CHECKPOINTS))
    blocks = [distinct[start : start + BLOCK] for start in range(done, len(distinct), BLOCK)]
    with contextlib.closing(over_blocks(_encode_block, encoder, blocks)) as batches:
        for batch in batches:
            array[done : done + len(batch)] = batch
            done += len(batch)
            on_texts(len(batch))
            if done < len(distinct) and (done % BLOCK or done < last_checkpoint + interval):
                continue
            last_checkpoint = done
            if file:
                checkpoint.write(file, {"vectors": vectors}, {"read": done, "seconds": stopwatch.elapsed_s})
            # Only checked after a checkpoint, so every call makes progress.
            if done < len(distinct) and clock and clock.expired:
                raise BudgetSpent(_budget_message(done, distinct, encoder, clock))
    row = {text: i for i, text in enumerate(distinct)}
    return EncodedTexts(vectors[[row.get(text, len(distinct)) for text in texts]], readable, stopwatch.elapsed_s)


def _budget_message(done: int, texts: list[str], encoder: Encoder, clock: Clock) -> str:
    tokens = encoder.token_counts(texts)
    needed = clock.elapsed_s * tokens.sum() / tokens[:done].sum()
    return (
        f"encoder.budget_s is {clock.budget_s:g} s, which ended before all texts were encoded: {done:,} of "
        f"{len(texts):,} were encoded in {clock.elapsed_s:.0f} s, and all need about {needed:.0f} s, plus the time for "
        "training. Increase encoder.budget_s, reduce encoder.max_tokens or choose a smaller model. A new run with the "
        "same settings continues with the texts that are left"
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
